/**
 * The depth chart: what one could buy or sell down to each price, as two staircases on one canvas.
 */

import { text } from "./decimals.js";

/** Draw the book's cumulative quantities; returns a sentence about what is shown. */
export function drawDepth(canvas, book, colours) {
  const bids = cumulative(book.sortedBids());
  const asks = cumulative(book.sortedAsks());
  const context = sized(canvas);
  const { width, height } = canvas.getBoundingClientRect();
  context.clearRect(0, 0, width, height);
  if (!bids.length || !asks.length) return "";
  const middle = (bids[0][0] + asks[0][0]) / 2;
  const reach = Math.min(middle - bids.at(-1)[0], asks.at(-1)[0] - middle);
  const most = Math.max(within(bids, middle, reach), within(asks, middle, reach), 1);
  const place = {
    x: (price) => (width * (price - middle + reach)) / (2 * reach || 1),
    y: (total) => height - 4 - ((height - 12) * total) / most,
    bottom: height,
  };
  stairs(context, bids, place, colours.bid, 0);
  stairs(context, asks, place, colours.ask, width);
  const from = text(Math.round(middle - reach), book.priceDecimals);
  const to = text(Math.round(middle + reach), book.priceDecimals);
  return `${from} to ${to}, up to ${text(most, book.quantityDecimals)}`;
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

function stairs(context, steps, place, colour, edge) {
  const line = new Path2D();
  line.moveTo(place.x(steps[0][0]), place.bottom);
  let before = place.bottom;
  for (const [price, total] of steps) {
    line.lineTo(place.x(price), before);
    before = place.y(total);
    line.lineTo(place.x(price), before);
  }
  line.lineTo(edge, before);
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.stroke(line);
  line.lineTo(edge, place.bottom);
  context.globalAlpha = 0.18;
  context.fillStyle = colour;
  context.fill(line);
  context.globalAlpha = 1;
}
