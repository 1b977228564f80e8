// Which video tokens are kept: the twin of reference/policies.py, index for index.

// What the functions below compute; of any other policy the page shows what was served.
const COMPUTED = ["specvlm", "specvlm-grid", "attention", "uniform", "uniform-grid", "random",
  "window-front", "window-middle", "window-back", "frames", "none", "attention-spread"];

// Number of tokens to keep out of n.
function videoTokenBudget(n, retention) {
  return Math.min(n, Math.max(1, Math.trunc(n * retention + 1e-6)));
}

// Token indices frame after frame, each frame along a Hilbert curve (reference/spacing.py).
function gridOrder([frames, rows, columns]) {
  let side = 1;
  while (side < Math.max(rows, columns)) side *= 2;
  const cells = [];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      let x = column, y = row, distance = 0;
      for (let half = side / 2; half >= 1; half /= 2) {
        const right = (x & half) > 0, down = (y & half) > 0;
        distance += half * half * ((3 * right) ^ down);
        if (right && !down) { x = side - 1 - x; y = side - 1 - y; }
        if (!down) [x, y] = [y, x];
      }
      cells.push([distance, row * columns + column]);
    }
  }
  cells.sort((a, b) => a[0] - b[0]);
  const order = [];
  for (let frame = 0; frame < frames; frame++) {
    for (const [, cell] of cells) order.push(frame * rows * columns + cell);
  }
  return order;
}

function evenly(candidates, count) {
  return Array.from({ length: count }, (_, i) =>
    candidates[Math.floor((i * (candidates.length - 1)) / Math.max(count - 1, 1))]);
}

function spacedOverGrid(candidates, count, grid) {
  const chosen = new Set(candidates);
  const along = gridOrder(grid).filter((token) => chosen.has(token));
  return Array.from({ length: count }, (_, i) =>
    along[Math.floor(((2 * i + 1) * along.length) / (2 * count))]);
}

function wholeFrames([frames, rows, columns], budget) {
  const area = rows * columns;
  const tokens = (frame) => Array.from({ length: area }, (_, i) => frame * area + i);
  const all = Array.from({ length: frames }, (_, i) => i);
  const kept = evenly(all, Math.ceil(budget / area));
  const whole = kept.slice(0, -1).flatMap(tokens);
  return whole.concat(evenly(tokens(kept[kept.length - 1]), budget - whole.length));
}

function stageOneTokens(scores, ranked, topP, budget) {
  const prefix = [0];
  for (const token of ranked) prefix.push(prefix[prefix.length - 1] + scores[token]);
  const wanted = topP * prefix[prefix.length - 1];
  const needed = prefix.findIndex((mass) => mass >= wanted);
  return ranked.slice(0, Math.min(needed, budget));
}

// The lowest value within one step of each cell along every axis.
function boxMinimum(values, grid) {
  let stride = values.length, found = values;
  for (const length of grid) {
    const outer = stride;
    stride /= length;
    const before = found;
    found = before.map((value, i) => {
      const place = Math.floor((i % outer) / stride);
      return Math.min(value, place > 0 ? before[i - stride] : value,
        place < length - 1 ? before[i + stride] : value);
    });
  }
  return found;
}

// The best tokens with distance between them, layer by layer (reference/spread.py).
function spreadTokens(ranked, budget, grid) {
  const LAYERS = 4, SWEEPS = 12, n = ranked.length;
  const rank = new Array(n);
  ranked.forEach((token, place) => { rank[token] = place; });
  const layer = new Array(n).fill(LAYERS);
  for (let number = 0; number < LAYERS; number++) {
    let open = layer.map((found) => found === LAYERS);
    for (let sweep = 0; sweep < SWEEPS; sweep++) {
      const openRank = rank.map((place, i) => (open[i] ? place : n));
      const lowest = boxMinimum(openRank, grid);
      const lost = openRank.map((place, i) => (open[i] && place === lowest[i] ? 0 : 1));
      lost.forEach((value, i) => { if (value === 0) layer[i] = number; });
      const far = boxMinimum(lost, grid);
      open = open.map((isOpen, i) => isOpen && far[i] > 0);
    }
  }
  return ranked.slice().sort((a, b) => layer[a] - layer[b] || rank[a] - rank[b]).slice(0, budget);
}

// scores: numbers, one a token. permutation: of all tokens, for "random" (drawn with NumPy, seed 0).
// Returns {stageOne, stageTwo}, ascending indices.
function selectVideoTokens(scores, { retention, topP, policy, grid, permutation }) {
  const values = Float32Array.from(scores);
  const n = values.length;
  const ascending = (tokens) => tokens.sort((a, b) => a - b);
  const everything = Array.from({ length: n }, (_, i) => i);
  if (n === 0 || policy === "none") return { stageOne: [], stageTwo: everything };
  const budget = videoTokenBudget(n, retention);
  const window = { "window-front": 0, "window-middle": Math.floor((n - budget) / 2),
    "window-back": n - budget }[policy];
  if (window !== undefined) {
    return { stageOne: [], stageTwo: everything.slice(window, window + budget) };
  }
  if (policy === "random") {
    return { stageOne: [], stageTwo: ascending(permutation.slice(0, budget)) };
  }
  if (policy === "frames") return { stageOne: [], stageTwo: wholeFrames(grid, budget) };
  const ranked = everything.slice().sort((a, b) => values[b] - values[a] || a - b);
  const hasMass = values.some((value) => value > 0);
  let stageOne = [];
  if (policy === "attention" && hasMass) stageOne = ranked.slice(0, budget);
  if (policy === "attention-spread" && hasMass) stageOne = spreadTokens(ranked, budget, grid);
  if (policy === "specvlm" || policy === "specvlm-grid") {
    stageOne = stageOneTokens(values, ranked, topP, budget);
  }
  const taken = new Set(stageOne);
  const rest = everything.filter((token) => !taken.has(token));
  const count = budget - stageOne.length;
  const stageTwo = policy.endsWith("-grid") ? spacedOverGrid(rest, count, grid)
    : evenly(rest, count);
  return { stageOne: ascending(stageOne), stageTwo: ascending(stageTwo) };
}
