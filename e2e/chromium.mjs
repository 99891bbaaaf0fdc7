// Headless Chromium, driven over its own protocol.

import assert from "node:assert/strict"
import { existsSync } from "node:fs"
import { chromium } from "playwright-core"

const program = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium"

// The reason why the browser's tests cannot run, if they cannot. In continuous integration that is a failure.
export const missing = existsSync(program) ? false : "chromium is not installed; to install it: apt-get install chromium"
if (missing && process.env.CI === "true") assert.fail(missing)

export function launch() {
  return chromium.launch({ executablePath: program, args: ["--no-sandbox"] })
}
