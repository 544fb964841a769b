/** What the page asks by REST: few things, and none of them has to be answered. */

const PATIENCE_MS = 5_000;
const REFUSED_PAUSE_MS = 10_000;
const NO_STREAM =
  "the gateway answers, but no live connection comes about; a proxy may let no WebSocket through";

/** Return the object at a path, or null if it could not be had. */
export async function asked(path) {
  try {
    const answer = await fetched(path);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/**
 * Return why no stream can be opened, as {message, pauseMs}, or null if nobody answers: a browser
 * does not tell a page how its handshake was refused, so a plain request asks the same path. If
 * only the handshake is wrong with that one, a stream would be let in.
 */
export async function whyNoStream() {
  try {
    const answer = await fetched("v1/stream");
    const { reason, message } = await answer.json();
    if (reason === "HANDSHAKE_INVALID") return { message: NO_STREAM, pauseMs: 0 };
    const seconds = Number(answer.headers.get("Retry-After"));
    return { message, pauseMs: 1_000 * seconds || REFUSED_PAUSE_MS };
  } catch {
    return null;
  }
}

function fetched(path) {
  return fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
}
