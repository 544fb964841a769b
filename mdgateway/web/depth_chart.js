/**
 * The depth chart: what one could buy or sell down to each price, as two staircases on one canvas,
 * with axes and a read-out of the price under the pointer.
 */

import { brief, text } from "./decimals.js";
import { write } from "./ladder.js";

const AXIS_PX = 18;
const TOP_PX = 8;
const LABEL_PX = 110;
const FONT = "11px system-ui, sans-serif";

export class DepthChart {
  /** `readout` is an element over the canvas that is moved beside the pointer. */
  constructor(canvas, readout) {
    this.canvas = canvas;
    this.readout = readout;
    this.pointer = null;
    this.scene = null;
    canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    canvas.addEventListener("pointerdown", (event) => this.point(event.offsetX));
    canvas.addEventListener("pointerleave", () => this.point(null));
  }

  /** Draw the book's cumulative quantities; returns a sentence about what is shown. */
  draw(book, { tick, asset }, colours) {
    this.scene = book.known ? sceneOf(this.canvas, book, colours) : null;
    Object.assign(this.scene ?? {}, { tick, asset });
    this.paint();
    if (!this.scene) return "";
    const { low, high, most } = this.scene;
    const ends = [low, high].map((price) => text(Math.round(price), book.priceDecimals));
    return `${ends[0]} to ${ends[1]}, up to ${text(most, book.quantityDecimals)} ${asset}`;
  }

  point(x) {
    this.pointer = x;
    this.paint();
  }

  paint() {
    const context = sized(this.canvas);
    const { width, height } = this.canvas.getBoundingClientRect();
    context.clearRect(0, 0, width, height);
    this.readout.hidden = this.pointer === null || !this.scene;
    if (!this.scene) return;
    const { bids, asks, colours } = this.scene;
    drawAxes(context, this.scene);
    stairs(context, bids, this.scene, colours.bid, 0);
    stairs(context, asks, this.scene, colours.ask, width);
    if (this.pointer !== null) this.paintPointer(context);
  }

  paintPointer(context) {
    const { price, total, side } = this.at(this.pointer);
    const { scene } = this;
    const x = scene.x(price);
    context.strokeStyle = scene.colours.text;
    context.setLineDash([3, 3]);
    line(context, x, 0, x, scene.bottom);
    context.setLineDash([]);
    if (total) {
      context.fillStyle = scene.colours[side];
      context.beginPath();
      context.arc(x, scene.y(total), 3.5, 0, 2 * Math.PI);
      context.fill();
    }
    this.say(price, total, side, x);
  }

  /** Return the price at a place and what stands between the middle and it. */
  at(x) {
    const { low, high, width, middle, bids, asks, tick } = this.scene;
    const price = Math.round((low + ((high - low) * x) / width) / tick) * tick;
    const [steps, side] = price < middle ? [bids, "bid"] : [asks, "ask"];
    const reached = steps.filter(([of]) => (side === "bid" ? of >= price : of <= price));
    return { price, total: reached.at(-1)?.[1] ?? 0, side };
  }

  say(price, total, side, x) {
    const { book, asset, middle, width } = this.scene;
    const [first, second] = this.readout.children;
    write(first, `${text(price, book.priceDecimals)}  ${away(price, middle)}`);
    const amount = `${text(total, book.quantityDecimals)} ${asset}`;
    write(second, `${amount} ${side === "bid" ? "bid" : "asked"}`);
    this.readout.dataset.side = side;
    const room = this.readout.offsetWidth;
    const left = x + 10 + room > width ? x - 10 - room : x + 10;
    this.readout.style.left = `${Math.max(0, left)}px`;
  }
}

function sceneOf(canvas, book, colours) {
  const bids = cumulative(book.sortedBids());
  const asks = cumulative(book.sortedAsks());
  if (!bids.length || !asks.length) return null;
  const { width, height } = canvas.getBoundingClientRect();
  const middle = (bids[0][0] + asks[0][0]) / 2;
  const reach = Math.min(middle - bids.at(-1)[0], asks.at(-1)[0] - middle);
  const [low, high] = [middle - reach, middle + reach];
  const most = Math.max(within(bids, middle, reach), within(asks, middle, reach), 1);
  const bottom = height - AXIS_PX;
  return {
    book, colours, bids, asks, middle, low, high, most, width, bottom,
    x: (price) => (width * (price - low)) / (high - low || 1),
    y: (total) => bottom - ((bottom - TOP_PX) * total) / most,
  };
}

/** Return how far a price is from the middle: in basis points, beyond a hundred in percent. */
function away(price, middle) {
  const points = (10_000 * Math.abs(price - middle)) / middle;
  const size = points < 100 ? `${points.toFixed(2)} bp` : `${(points / 100).toFixed(2)} %`;
  return `${price < middle ? "\u2212" : "+"}${size}`;
}

function cumulative(levels) {
  let total = 0;
  return levels.map(([price, quantity]) => [price, (total += quantity)]);
}

function within(steps, middle, reach) {
  const near = steps.filter(([price]) => Math.abs(price - middle) <= reach);
  return near.length ? near.at(-1)[1] : 0;
}

function sized(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

function line(context, fromX, fromY, toX, toY) {
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(Math.round(fromX) + 0.5, fromY);
  context.lineTo(Math.round(toX) + 0.5, toY);
  context.stroke();
}

function drawAxes(context, scene) {
  const { colours, width, bottom, low, high, most, book } = scene;
  context.font = FONT;
  context.fillStyle = colours.text;
  context.strokeStyle = colours.line;
  context.textBaseline = "alphabetic";
  context.textAlign = "center";
  for (const price of marks(low, high, width / LABEL_PX)) {
    const x = scene.x(price);
    line(context, x, 0, x, bottom);
    const label = text(price, book.priceDecimals);
    const half = context.measureText(label).width / 2;
    if (x > half && x < width - half) context.fillText(label, x, bottom + 13);
  }
  // Between the staircases nothing stands in the way of a label.
  for (const total of marks(0, most, bottom / 40).filter(Boolean)) {
    const y = Math.round(scene.y(total)) + 0.5;
    line(context, 0, y, width, y);
    context.fillText(brief(total / 10 ** book.quantityDecimals), width / 2, y + 12);
  }
}

/** Return about so many round numbers within a span. */
function marks(low, high, count) {
  const raw = Math.max(1, (high - low) / Math.max(1, count));
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return found;
}

function stairs(context, steps, place, colour, edge) {
  const path = new Path2D();
  path.moveTo(place.x(steps[0][0]), place.bottom);
  let before = place.bottom;
  for (const [price, total] of steps) {
    path.lineTo(place.x(price), before);
    before = place.y(total);
    path.lineTo(place.x(price), before);
  }
  path.lineTo(edge, before);
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.stroke(path);
  path.lineTo(edge, place.bottom);
  context.globalAlpha = 0.18;
  context.fillStyle = colour;
  context.fill(path);
  context.globalAlpha = 1;
}
