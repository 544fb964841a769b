/**
 * The page: which pair and interval, and who draws what of the messages.
 *
 * Messages change what is known; drawing happens at most ten times a second and only of what
 * changed. While the line is dead everything stays, marked as stale. What is known is of one pair:
 * choosing another one forgets it, and messages of any other pair are passed over.
 */

import { Book } from "./book.js";
import { CandleChart } from "./candle_chart.js";
import { Connection } from "./connection.js";
import { decimalsOf, spaced, text, whole } from "./decimals.js";
import { DepthChart } from "./depth_chart.js";
import { Ladder, spreadOf, write } from "./ladder.js";
import { marketWords } from "./market_words.js";
import { asked, whyNoStream } from "./rest.js";
import { Strip } from "./strip.js";
import { TAPE_ROWS, Tape } from "./tape.js";
import { startTheme } from "./theme.js";

const INTERVALS = ["1s", "1m", "5m", "15m", "1h", "4h", "1d", "1w"];
const GROUPS = [1, 10, 100, 1_000, 10_000];
const DEPTH_LEVELS = 100;
const FRAME_MS = 100;
const CHANNELS = ["status", "depth", "ticker", "trades", "candles"];

const byId = (id) => document.getElementById(id);
const field = (name) => document.querySelector(`[data-field="${name}"]`);

const state = {
  pair: "",
  interval: "1m",
  step: 1,
  instruments: new Map(),
  book: new Book(),
  ticker: null,
  /** The pair's message of the status channel; null until it comes on this connection. */
  status: null,
  /** What the last notice said about an engine that is not there. */
  downReason: "",
  link: { state: "connecting", sentence: "" },
  colours: {},
  dirty: { book: false, ticker: false, tape: false },
};

const ladder = new Ladder(byId("ladder"));
const tape = new Tape(byId("trades"), field("zone"));
const strip = new Strip(byId("strip"));
const depthChart = new DepthChart(byId("depth-chart"), byId("depth-readout"));
const chart = new CandleChart(byId("chart"), byId("legend"), olderCandles);
const address = new URL("v1/stream", document.baseURI);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
const connection = new Connection(address.href, {
  onMessage: take,
  onState: takeLink,
  onLatency: (ms) => write(field("latency"), `${ms.toFixed(ms < 10 ? 1 : 0)} ms`),
  explain: whyNoStream,
});

// What comes in.

const TAKERS = {
  status: takeStatus,
  depth: takeDepth,
  ticker: (message) => {
    state.ticker = message;
    state.dirty.ticker = true;
  },
  trades: (message) => {
    tape.take(message.trades);
    state.dirty.tape = true;
  },
  candles: (message) => {
    if (message.interval === state.interval) chart.take(message);
  },
};

function take(message) {
  if (message.type === "refused") console.error(message.message);
  if (message.pair !== state.pair) return;
  if (message.type === "notice") {
    if (message.notice === "engine_down") state.downReason = message.message;
    if (message.notice === "trades_restarted") beginTape(state.status?.trade_number ?? 0);
    showCondition();
  } else if (message.type === "ended") {
    // Too many trades were missed to be told: begin with the newest ones there are.
    forgetStatus();
    subscribeStatus();
  } else {
    TAKERS[message.channel]?.(message);
  }
}

function takeStatus(message) {
  // A first status, or one of another epoch: trades were missed, or their numbers begun anew.
  if (state.status?.epoch !== message.epoch) resumeTape(message.trade_number);
  state.status = message;
  showCondition();
}

function takeDepth(message) {
  const known = state.book.known;
  if (!state.book.take(message) && known) subscribeDepth();
  state.dirty.book = true;
}

function takeLink(link, sentence) {
  if (link === state.link.state && sentence === state.link.sentence) return;
  state.link = { state: link, sentence };
  if (link !== "live") {
    write(field("latency"), "");
    forgetStatus();
  }
  showCondition();
}

async function olderCandles(before) {
  const path = `v1/candles/${state.pair}?interval=${state.interval}&to=${before}&limit=500`;
  return (await asked(path))?.candles ?? null;
}

// What is asked for.

function subscribeStatus() {
  connection.subscribe("status", () => ({ channel: "status", pairs: [state.pair] }));
}

function subscribeDepth() {
  connection.subscribe("depth", () => ({
    channel: "depth",
    pairs: [state.pair],
    levels: DEPTH_LEVELS,
    interval_ms: FRAME_MS,
  }));
}

function subscribeTicker() {
  connection.subscribe("ticker", () => ({
    channel: "ticker",
    pairs: [state.pair],
    interval_ms: 250,
  }));
}

function subscribeCandles() {
  connection.subscribe("candles", () => ({
    channel: "candles",
    pairs: [state.pair],
    interval: state.interval,
  }));
}

/** Go on after the trades on the tape; whether they are of this history the gateway says. */
function resumeTape(newest) {
  if (!tape.reaches(newest)) beginTape(newest);
  else subscribeTrades({ from_trade_number: tape.newest + 1, held_time_ns: tape.newestNs });
}

/** Fill the tape from the newest trade backwards and go on from there. */
function beginTape(newest) {
  tape.clear();
  state.dirty.tape = true;
  subscribeTrades({ from_trade_number: Math.max(1, newest - TAPE_ROWS + 1) });
}

function subscribeTrades(place) {
  connection.subscribe("trades", () => ({ channel: "trades", pairs: [state.pair], ...place }));
}

/** Forget what the pair's status was; the trades are asked for when it comes again. */
function forgetStatus() {
  connection.unsubscribe("trades");
  state.status = null;
}

function choosePair(pair) {
  for (const name of CHANNELS) connection.unsubscribe(name);
  state.pair = pair;
  state.status = state.ticker = null;
  state.downReason = "";
  state.book.clear();
  tape.clear();
  chart.clear(state.interval);
  state.dirty = { book: true, ticker: true, tape: true };
  history.replaceState(null, "", `#${pair}`);
  byId("pair").value = pair;
  offerGroups();
  showCondition();
  subscribeStatus();
  subscribeDepth();
  subscribeTicker();
  subscribeCandles();
}

function chooseInterval(interval) {
  connection.unsubscribe("candles");
  state.interval = interval;
  chart.clear(interval);
  write(field("chart-zone"), chart.clock.zone());
  for (const button of byId("intervals").children) {
    button.setAttribute("aria-pressed", String(button.textContent === interval));
  }
  if (state.pair) subscribeCandles();
}

function tickOf(pair) {
  const { tick_size: tick, tick_step: step } = state.instruments.get(pair);
  return Number(step ?? whole(tick));
}

function offerGroups() {
  const decimals = decimalsOf(state.instruments.get(state.pair).tick_size);
  const steps = GROUPS.map((factor) => factor * tickOf(state.pair));
  byId("group").replaceChildren(...steps.map((step) => new Option(text(step, decimals), step)));
  state.step = steps[0];
}

// What is drawn.

function draw() {
  const { dirty, pair } = state;
  if (!pair) return;
  if (dirty.book) drawBook();
  if (dirty.tape) tape.draw();
  if (dirty.ticker || dirty.tape) {
    strip.draw(state.ticker, state.instruments.get(pair), tape.direction);
  }
  if (dirty.book || dirty.ticker || dirty.tape) drawMiddle();
  state.dirty = { book: false, ticker: false, tape: false };
}

function drawBook() {
  const { book, pair } = state;
  ladder.draw(book, state.step);
  const asset = state.instruments.get(pair).base_asset;
  const note = depthChart.draw(book, { tick: tickOf(pair), asset }, state.colours);
  write(field("depth-note"), note);
  byId("book").dataset.sequence = book.sequence;
  byId("book").dataset.epoch = book.epoch;
}

function drawMiddle() {
  const last = tape.last || state.ticker?.last_trade?.price || "";
  write(field("middle-last"), last ? spaced(last) : "–");
  field("middle-last").dataset.direction = tape.direction;
  const spread = spreadOf(state.book, tickOf(state.pair));
  write(field("spread"), spread.amount);
  write(field("spread-size"), spread.size);
  document.title = last ? `${spaced(last)} ${state.pair}` : `${state.pair} · Holdfast`;
}

/** Show how the line, the engine and the pair are: a word each, and a sentence for what is ill. */
function showCondition() {
  const { link, status } = state;
  const down = link.state === "live" && status?.engine_state === "unknown";
  const shown = down ? "engine" : link.state;
  const words = { live: "live", connecting: "connecting", engine: "no engine", refused: "refused" };
  byId("connection").dataset.state = shown;
  write(field("state"), words[shown] ?? "offline");
  byId("market").dataset.stale = String(shown !== "live");
  const market = marketWords(status);
  write(byId("status"), market.word);
  byId("status").dataset.kind = market.kind;
  const sentences = {
    live: market.sentence,
    connecting: "",
    engine: `${state.pair}: ${state.downReason || "there is no engine; data stand still"}`,
    refused: `Refused: ${link.sentence}. What is shown stands still; trying again.`,
    lost: "No connection to the gateway. What is shown stands still; trying again.",
  };
  write(byId("news"), sentences[shown]);
  byId("news").dataset.kind = shown === "live" ? market.kind : shown;
}

// What people do.

function wire() {
  byId("pair").addEventListener("change", (event) => choosePair(event.target.value));
  byId("group").addEventListener("change", (event) => {
    state.step = Number(event.target.value);
    state.dirty.book = true;
  });
  INTERVALS.forEach((interval, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = interval;
    button.title = String(index + 1);
    button.addEventListener("click", () => chooseInterval(interval));
    byId("intervals").append(button);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "p") byId("pair").focus();
    else if (event.key === "g") byId("group").focus();
    else if (event.key === "t") byId("theme").click();
    else if (INTERVALS[event.key - 1]) chooseInterval(INTERVALS[event.key - 1]);
  });
  const sizes = new ResizeObserver(() => {
    ladder.fit();
    state.dirty.book = true;
  });
  for (const id of ["depth-chart", "ladder-room"]) sizes.observe(byId(id));
}

async function instruments() {
  for (;;) {
    // The gateway may not be there yet; the connection's lamp says so.
    const answer = await asked("v1/instruments");
    if (answer) return answer.instruments;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}

async function start() {
  wire();
  chooseInterval(state.interval);
  startTheme(byId("theme"), (colours) => {
    state.colours = colours;
    chart.colour(colours);
    state.dirty.book = true;
  });
  const found = await instruments();
  for (const instrument of found) state.instruments.set(instrument.pair, instrument);
  byId("pair").replaceChildren(...found.map(({ pair }) => new Option(pair, pair)));
  const wanted = location.hash.slice(1);
  choosePair(state.instruments.has(wanted) ? wanted : found[0].pair);
}

setInterval(() => requestAnimationFrame(draw), FRAME_MS);
start();
