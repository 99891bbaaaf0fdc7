// The page's text, without a page: many authors type at once, a server orders what they send, and all must end alike.
// Run with: node --test crates/relay-service/tests/text.test.mjs

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { SharedText, apply, difference, operation, transform } from "../assets/text.js"

// Numbers that look random and are the same every time (mulberry32).
function random(seed) {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * below)
  }
}

const ALPHABET = [..."abc é👋"]

function type(text, pick) {
  const at = pick(text.length + 1)
  const deleted = Math.min(pick(4), text.length - at)
  const inserted = Array.from({ length: pick(4) }, () => ALPHABET[pick(ALPHABET.length)])
  return [...text.slice(0, at), ...inserted, ...text.slice(at + deleted)]
}

test("two edits of one text, each moved over the other, come to the same text in either order", () => {
  for (let seed = 0; seed < 3000; seed++) {
    const pick = random(seed)
    const text = type(type(type([], pick), pick), pick)
    const edit = () => operation(difference(text, type(text, pick)) ?? [0, 0, ""])
    const [first, second] = [edit(), edit()]
    const [movedFirst, movedSecond] = transform(first, second)
    assert.deepEqual(apply(apply(text, first), movedSecond), apply(apply(text, second), movedFirst), `seed ${seed}`)
  }
})

test("a difference is the patch that makes one text of the other", () => {
  for (let seed = 0; seed < 2000; seed++) {
    const pick = random(seed)
    const before = type(type([], pick), pick)
    const after = type(before, pick)
    const patch = difference(before, after)
    assert.deepEqual(patch ? apply(before, operation(patch)) : before, after, `seed ${seed}`)
  }
})

test("everybody who takes the same ordered events has the same text, whatever was typed at once", () => {
  for (let seed = 0; seed < 300; seed++) {
    const pick = random(seed)
    const ordered = []
    const authors = Array.from({ length: 3 }, () => ({ text: new SharedText(), waiting: null, had: 0 }))
    for (let step = 0; step < 120; step++) {
      const author = authors[pick(3)]
      if (pick(2) === 0 && author.had < ordered.length) {
        const event = ordered[author.had++]
        author.text.take(event)
        if (event === author.waiting) author.waiting = null
      } else if (author.waiting === null) {
        const patch = difference(author.text.points, type(author.text.points, pick))
        if (patch === null) continue
        const event = { seq: ordered.length + 1, kind: "document.edited", payload: { patches: [patch], base: author.text.seq } }
        ordered.push(event)
        author.waiting = event
      }
    }
    const late = new SharedText()
    for (const event of ordered) late.take(event)
    for (const author of authors) {
      while (author.had < ordered.length) author.text.take(ordered[author.had++])
      assert.equal(author.text.points.join(""), late.points.join(""), `seed ${seed}`)
    }
  }
})

test("patches that lie beyond the text are cut off alike everywhere", () => {
  const text = new SharedText()
  text.take({ seq: 1, kind: "document.edited", payload: { patches: [[1e15, 7, "end"], [1, 1e15, ""]] } })
  assert.equal(text.points.join(""), "e")
})

// The services keep the text, too: crates/relay-demo/src/shared_text.rs is held to the same cases.
test("edits that were made at once come to the text that others, who keep it in another language, have", () => {
  for (const { payloads, text } of JSON.parse(readFileSync(new URL("../../relay-demo/tests/shared-text.json", import.meta.url)))) {
    const shared = new SharedText()
    for (const [index, payload] of payloads.entries()) shared.take({ seq: index + 1, kind: "document.edited", payload })
    assert.equal(shared.points.join(""), text)
  }
})
