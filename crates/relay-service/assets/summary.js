// What the services have found, as the latest `x-summary` event says it: a panel of plain text.

const $ = (id) => document.getElementById(id)

// Flesch's own words for his scale.
const EASE = [[90, "very easy"], [80, "easy"], [70, "fairly easy"], [60, "standard"], [50, "fairly difficult"], [30, "difficult"]]

const FLAGS = {
  long_sentence: "long sentences",
  passive: "passive voice",
  doubled_word: "doubled words",
  repeated_phrase: "repeated phrases",
}

const ease = (score) => `${score} – ${EASE.find(([least]) => score >= least)?.[1] ?? "very difficult"}`

function duration(seconds) {
  return seconds < 60 ? `${seconds} s` : `${Math.round(seconds / 60)} min`
}

// Fills a list of terms; those without a value are left out.
function fill(list, facts) {
  const rows = facts
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(([name, value]) => {
      const [row, term, text] = ["div", "dt", "dd"].map((tag) => document.createElement(tag))
      term.textContent = name
      text.append(value)
      row.append(term, text)
      return row
    })
  list.replaceChildren(...rows)
}

function items(list, texts) {
  list.replaceChildren(
    ...texts.map((text) => {
      const item = document.createElement("li")
      item.textContent = text
      return item
    }),
  )
  list.hidden = texts.length === 0
}

// Shows a summary's payload; null when there is none.
export function showSummary(summary) {
  $("no-summary").hidden = summary !== null
  const metadata = summary?.metadata?.result ?? {}
  const quality = summary?.quality?.result ?? {}
  const words = quality.sentence_words
  fill($("metadata"), [
    ["title", metadata.title],
    ["language", metadata.language?.name],
    ["words", metadata.words],
    ["reading time", metadata.reading_seconds && duration(metadata.reading_seconds)],
    ["links", metadata.link_count || undefined],
    ["saved as", metadata.saved?.revision],
  ])
  fill($("quality"), [
    ["reading ease", quality.reading_ease !== undefined ? ease(quality.reading_ease) : undefined],
    ["school grade", quality.grade],
    ["LIX", quality.lix],
    ["words per sentence", words && `${words.mean} (longest ${words.longest})`],
    ["lexical diversity", quality.lexical_diversity],
  ])
  const flags = quality.flags ?? []
  items($("flags"), flags.map(({ name, count, examples }) => `${FLAGS[name] ?? name}: ${count} – “${examples[0]}”`))
  items($("tags"), (summary?.tags ?? []).map(({ tag, annotations }) => (annotations > 1 ? `${tag} ×${annotations}` : tag)))
  $("no-tags").hidden = summary === null || summary.tags?.length > 0
}
