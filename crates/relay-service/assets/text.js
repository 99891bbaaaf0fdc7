// Shared text, made of ordered events. Pure: no page, no network.
//
// An operation is a list of parts that walks over a text: a number keeps that many code points, {delete: n} drops
// them, a string puts something in. What is left at the end is kept.
//
// The server's order is the truth. An edit says in `base` which event its author had seen. Everybody moves it over the
// events between that one and its own place, in the same way, and so everybody gets the same text.

// How far back an edit's base may lie. One that is older is taken as if its author had seen everything.
export const WINDOW = 2000

// How many code points are put in with one call, which takes a limited number of arguments.
const CHUNK = 10_000

// The operation of one patch [position, deleted, inserted]. What lies beyond the text is cut off where it is applied.
export function operation([position, deleted, inserted]) {
  return [position, { delete: deleted }, [...inserted].join("")].filter((part) => size(part) > 0)
}

const size = (part) => (typeof part === "number" ? part : typeof part === "string" ? [...part].length : part.delete)

// The code points of `text` after `op`.
export function apply(text, op) {
  const result = []
  let at = 0
  for (const part of op) {
    if (typeof part === "string") for (const point of part) result.push(point)
    else if (typeof part === "number") for (const end = Math.min(at + part, text.length); at < end; at++) result.push(text[at])
    else at = Math.min(at + part.delete, text.length)
  }
  for (; at < text.length; at++) result.push(text[at])
  return result
}

// As `apply`, in place, for an operation with one change: much faster on a long text.
export function applyInPlace(text, op) {
  let at = 0
  for (const part of op) {
    if (typeof part === "number") at = Math.min(at + part, text.length)
    else if (typeof part === "string") {
      const points = [...part]
      for (let from = 0; from < points.length; from += CHUNK) text.splice(at + from, 0, ...points.slice(from, from + CHUNK))
      at += points.length
    } else text.splice(at, part.delete)
  }
}

// Two operations on the same text, each moved over the other: apply(apply(t, first), second′) equals
// apply(apply(t, second), first′). Where both insert at one place, `first` comes first.
export function transform(first, second) {
  const [a, b] = [new Parts(first), new Parts(second)]
  const [movedFirst, movedSecond] = [[], []]
  while (!a.done || !b.done) {
    if (typeof a.part === "string") {
      movedFirst.push(a.part)
      movedSecond.push(size(a.part))
      a.next()
    } else if (typeof b.part === "string") {
      movedFirst.push(size(b.part))
      movedSecond.push(b.part)
      b.next()
    } else {
      const length = Math.min(a.left, b.left)
      if (length === Infinity) break
      const [aDeletes, bDeletes] = [a.deletes, b.deletes]
      if (!aDeletes && !bDeletes) {
        movedFirst.push(length)
        movedSecond.push(length)
      } else if (aDeletes && !bDeletes) movedFirst.push({ delete: length })
      else if (bDeletes && !aDeletes) movedSecond.push({ delete: length })
      a.take(length)
      b.take(length)
    }
  }
  return [movedFirst, movedSecond]
}

// Walks over an operation's parts; after the last everything is kept.
class Parts {
  #op
  #index = -1

  constructor(op) {
    this.#op = op
    this.next()
  }

  next() {
    this.part = this.#op[++this.#index]
    this.left = this.done ? Infinity : size(this.part)
  }

  take(length) {
    this.left -= length
    if (this.left === 0) this.next()
  }

  get done() {
    return this.#index >= this.#op.length
  }

  get deletes() {
    return typeof this.part === "object"
  }
}

// Where a caret at `position` is after `op`.
export function moveCaret(position, op) {
  let at = 0
  for (const part of op) {
    if (at > position) break
    if (typeof part === "number") at += part
    else if (typeof part === "string") {
      position += size(part)
      at += size(part)
    } else position = Math.max(at, position - part.delete)
  }
  return position
}

// The one patch that makes `after` of `before`; null when they are equal. Both are code points.
export function difference(before, after) {
  let start = 0
  while (start < before.length && start < after.length && before[start] === after[start]) start++
  let end = 0
  const most = Math.min(before.length, after.length) - start
  while (end < most && before[before.length - 1 - end] === after[after.length - 1 - end]) end++
  if (start + end === before.length && before.length === after.length) return null
  return [start, before.length - start - end, after.slice(start, after.length - end).join("")]
}

// The text that the ordered events make.
export class SharedText {
  points = []
  #operations = [] // of the latest events, as they were applied; the last is of `seq`
  seq = 0

  // Takes the next event and returns the operations that it comes to.
  take({ seq, kind, payload }) {
    let operations = []
    if (kind === "document.edited" && Array.isArray(payload?.patches)) {
      const since = payload.base === undefined || seq - payload.base > WINDOW ? [] : this.#since(payload.base)
      operations = payload.patches.map(operation)
      for (const earlier of since) operations = over(operations, earlier)
      for (const op of operations) applyInPlace(this.points, op)
    }
    this.seq = seq
    this.#operations.push(operations)
    if (this.#operations.length > WINDOW) this.#operations.shift()
    return operations
  }

  #since(base) {
    const count = Math.max(0, Math.min(this.seq - base, this.#operations.length))
    return this.#operations.slice(this.#operations.length - count).flat()
  }
}

// Operations that follow each other, moved over one that came before them.
export function over(operations, earlier) {
  return operations.map((op) => {
    const [movedEarlier, moved] = transform(earlier, op)
    earlier = movedEarlier
    return moved
  })
}
