/**
 * What a pair accepts and how its engine is, in a word and a sentence. Two facts, never conflated:
 * an open pair without an engine takes nothing. The worse one is said first.
 */

const PAIRS = {
  open: ["Open", "", "open"],
  cancel_only: ["Cancel only", "takes cancels only, no new orders", "limited"],
  halted: ["Halted", "is halted: it takes neither orders nor cancels", "shut"],
};
const ENGINES = {
  starting: ["Starting", "takes nothing yet: its engine is starting", "limited"],
  journal_blocked: ["Blocked", "takes nothing: its engine cannot write its journal", "shut"],
  draining: ["Stopping", "takes nothing more: its engine is stopping", "shut"],
  closing: ["Closing", "is closing: it takes cancels only", "limited"],
  closed: ["Closed", "is closed: it takes cancels only", "limited"],
  unknown: ["No engine", "", "shut"],
};
const UNKNOWN = ["–", "", "unknown"];

/** Return {word, sentence, kind} of a message of the status channel; null: nothing is known. */
export function marketWords(status) {
  const [pair, engine] = [PAIRS[status?.status], ENGINES[status?.engine_state]];
  const halted = engine && status.status === "halted" && status.engine_state !== "unknown";
  const [word, sentence, kind] = (halted ? pair : engine ?? pair) ?? UNKNOWN;
  return { word, sentence: sentence && `${status.pair} ${sentence}`, kind };
}
