/**
 * The page: which pair and interval, and who draws what of the messages.
 *
 * Messages change what is known; drawing happens at most ten times a second and only of what
 * changed. While the line is dead everything stays, marked as stale.
 */

import { Book } from "./book.js";
import { CandleChart } from "./candle_chart.js";
import { Connection } from "./connection.js";
import { brief, decimalsOf, spaced, text, whole } from "./decimals.js";
import { drawDepth } from "./depth_chart.js";
import { Ladder, write } from "./ladder.js";
import { Tape } from "./tape.js";
import { startTheme } from "./theme.js";

const INTERVALS = ["1s", "1m", "5m", "15m", "1h", "4h", "1d", "1w"];
const GROUPS = [1, 10, 100, 1_000, 10_000];
const DEPTH_LEVELS = 100;
const FRAME_MS = 100;

const byId = (id) => document.getElementById(id);
const field = (name) => document.querySelector(`[data-field="${name}"]`);

const state = {
  pair: "",
  interval: "1m",
  step: 1,
  instruments: new Map(),
  book: new Book(),
  ticker: null,
  colours: {},
  status: "connecting",
  engineDown: "",
  dirty: { book: false, ticker: false, tape: false },
};

const ladder = new Ladder(byId("asks"), byId("bids"), field("spread"));
const tape = new Tape(byId("trades"));
const chart = new CandleChart(byId("chart"), olderCandles);
const address = new URL("v1/stream", document.baseURI);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
const connection = new Connection(address.href, take, showState);

// What comes in.

const TAKERS = {
  depth: takeDepth,
  ticker: (message) => {
    state.ticker = message;
    state.dirty.ticker = true;
  },
  trades: (message) => {
    if (message.type !== "trades") return;
    tape.take(message.trades);
    state.dirty.tape = true;
  },
  candles: (message) => {
    if (message.interval === state.interval) chart.take(message);
  },
};

function take(message) {
  if (message.type === "notice") {
    state.engineDown = message.notice === "engine_down" ? message.message : "";
    showConnection();
  } else if (message.type === "ended") {
    subscribeTrades();
  } else if (message.type === "refused") {
    console.error(message.message);
  } else if (message.pair === state.pair) {
    TAKERS[message.channel]?.(message);
  }
}

function takeDepth(message) {
  if (message.type !== "snapshot" && message.type !== "update") return;
  if (!state.book.take(message)) subscribeDepth();
  state.dirty.book = true;
}

async function olderCandles(before) {
  const path = `v1/candles/${state.pair}?interval=${state.interval}&to=${before}&limit=500`;
  const answer = await fetch(path);
  return answer.ok ? (await answer.json()).candles : [];
}

// What is asked for.

function subscribeDepth() {
  connection.subscribe("depth", () => ({
    channel: "depth",
    pairs: [state.pair],
    levels: DEPTH_LEVELS,
    interval_ms: FRAME_MS,
  }));
}

function subscribeTrades() {
  connection.subscribe("trades", () => ({
    channel: "trades",
    pairs: [state.pair],
    ...(tape.newest ? { from_trade_number: tape.newest + 1 } : {}),
  }));
}

function subscribeCandles() {
  connection.subscribe("candles", () => ({
    channel: "candles",
    pairs: [state.pair],
    interval: state.interval,
  }));
}

async function choosePair(pair) {
  for (const name of ["depth", "ticker", "trades", "candles"]) connection.unsubscribe(name);
  state.pair = pair;
  state.ticker = null;
  state.book.clear();
  tape.clear();
  chart.clear();
  history.replaceState(null, "", `#${pair}`);
  byId("pair").value = pair;
  offerGroups();
  subscribeDepth();
  connection.subscribe("ticker", () => ({ channel: "ticker", pairs: [pair], interval_ms: 250 }));
  subscribeCandles();
  const answer = await fetch(`v1/trades/${pair}?limit=40`);
  if (pair !== state.pair) return;
  if (answer.ok) tape.take((await answer.json()).trades.reverse());
  state.dirty.tape = true;
  subscribeTrades();
}

function chooseInterval(interval) {
  connection.unsubscribe("candles");
  state.interval = interval;
  chart.clear();
  for (const button of byId("intervals").children) {
    button.setAttribute("aria-pressed", String(button.textContent === interval));
  }
  if (state.pair) subscribeCandles();
}

function offerGroups() {
  const { tick_size: tick, tick_step: step } = state.instruments.get(state.pair);
  const smallest = Number(step ?? whole(tick));
  byId("group").replaceChildren(
    ...GROUPS.map((factor) => new Option(text(smallest * factor, decimalsOf(tick)), smallest * factor)),
  );
  state.step = smallest;
}

// What is drawn.

function draw() {
  const { dirty, book, ticker } = state;
  if (dirty.book && book.known) {
    ladder.draw(book, state.step);
    write(field("depth-note"), drawDepth(byId("depth-chart"), book, state.colours));
    byId("book").dataset.sequence = book.sequence;
    byId("book").dataset.epoch = book.epoch;
  }
  if (dirty.ticker && ticker) drawTicker(ticker);
  if (dirty.tape) tape.draw();
  state.dirty = { book: false, ticker: false, tape: false };
}

function drawTicker(ticker) {
  const instrument = state.instruments.get(state.pair);
  const last = ticker.last_trade?.price ?? "";
  write(field("last"), last ? spaced(last) : "–");
  field("last").dataset.side = ticker.last_trade?.side ?? "";
  drawChange(last, ticker.day_open);
  write(field("bid"), ticker.best_bid ? spaced(ticker.best_bid.price) : "–");
  write(field("ask"), ticker.best_ask ? spaced(ticker.best_ask.price) : "–");
  write(field("high"), ticker.high_24h ? spaced(ticker.high_24h) : "–");
  write(field("low"), ticker.low_24h ? spaced(ticker.low_24h) : "–");
  write(field("volume"), `${brief(ticker.volume_24h)} ${instrument.base_asset}`);
  write(field("turnover"), `${brief(ticker.turnover_24h)} ${instrument.quote_asset}`);
  byId("strip").dataset.sequence = ticker.sequence;
  document.title = last ? `${spaced(last)} ${state.pair}` : `${state.pair} · Holdfast`;
}

function drawChange(last, open) {
  const change = last && open ? whole(last) - whole(open) : 0;
  const share = last && open ? ((100 * change) / whole(open)).toFixed(2) : "–";
  write(field("change"), share === "–" ? share : `${change > 0 ? "+" : ""}${share} %`);
  field("change").dataset.side = change > 0 ? "buy" : change < 0 ? "sell" : "";
}

function showState(status, latencyMs) {
  state.status = status;
  if (latencyMs !== null) write(field("latency"), `${latencyMs.toFixed(latencyMs < 10 ? 1 : 0)} ms`);
  else write(field("latency"), "");
  if (status === "lost") state.engineDown = "";
  showConnection();
}

function showConnection() {
  const live = state.status === "live";
  const shown = live && state.engineDown ? "engine" : state.status;
  byId("connection").dataset.state = shown;
  const words = { live: "live", connecting: "connecting", lost: "no connection, trying again" };
  write(field("state"), shown === "engine" ? state.engineDown : words[shown]);
  byId("market").dataset.stale = String(shown !== "live");
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
  new ResizeObserver(() => (state.dirty.book = true)).observe(byId("depth-chart"));
}

async function instruments() {
  for (;;) {
    try {
      const answer = await fetch("v1/instruments");
      if (answer.ok) return (await answer.json()).instruments;
    } catch {
      // The gateway is not there yet; the connection's lamp says so.
    }
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
  const asked = location.hash.slice(1);
  await choosePair(state.instruments.has(asked) ? asked : found[0].pair);
}

setInterval(() => requestAnimationFrame(draw), FRAME_MS);
start();
