/** The page's one clock: the zone of whoever looks at it, always named. */

const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium", hourCycle: "h23" });
const ZONE = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });

/** Return hours, minutes and seconds of a moment in nanoseconds, given as text. */
export function timeOf(timeNs) {
  return TIME.format(Number(BigInt(timeNs) / 1_000_000n));
}

/** Return the name of the zone at a moment, such as "CET"; a zone is named otherwise in summer. */
export function zoneAt(timeMs) {
  return ZONE.formatToParts(timeMs).find(({ type }) => type === "timeZoneName").value;
}

/** Return how many seconds the zone is ahead of UTC at a moment. */
export function aheadOfUtc(timeS) {
  return -60 * new Date(1_000 * timeS).getTimezoneOffset();
}
