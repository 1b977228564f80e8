const data = JSON.parse(document.getElementById("data").textContent);
const [frameCount, rows, columns] = data.grid;
const area = rows * columns;
const scores = data.scores ?? new Array(frameCount * area).fill(0);
const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function showAnswer() {
  const rounds = data.rounds.map((round, number) => {
    const count = round.drafted.length;
    const title = number === 0 ? "prefill: the target's first token"
      : `round ${number}: ${count} draft token${count === 1 ? "" : "s"} accepted`;
    const span = element("span", { className: "round", title });
    for (const token of round.drafted) {
      span.append(element("span", { className: "drafted", textContent: token }));
    }
    if (round.own !== null) {
      span.append(element("span", { className: "own", textContent: round.own }));
    }
    return span;
  });
  byId("answer").append(...rounds);
}

function showNumbers() {
  for (const [name, value] of data.numbers) {
    byId("numbers").append(element("div", {},
      element("dt", { textContent: name }), element("dd", { textContent: value })));
  }
}

function makeFrames() {
  return data.frames.map((frame, number) => {
    const canvas = element("canvas", { width: columns * 24, height: rows * 24 });
    canvas.setAttribute("aria-hidden", "true");
    const image = element("img", { src: frame.url });
    const caption = element("figcaption");
    const figure = element("figure", { tabIndex: -1 },
      element("div", { className: "picture" }, image, canvas), caption);
    const bar = element("button", { type: "button" }, element("i", { className: "one" }),
      element("i", { className: "two" }));
    bar.addEventListener("click", () => {
      figure.focus({ preventScroll: true });
      figure.scrollIntoView({ block: "nearest" });
    });
    byId("frames").append(figure);
    byId("timeline").append(bar);
    return { number, time: frame.time, canvas, image, caption, bar };
  });
}

function paint(frame, stageOf, highest, colours) {
  const context = frame.canvas.getContext("2d");
  context.clearRect(0, 0, frame.canvas.width, frame.canvas.height);
  let one = 0, two = 0;
  for (let cell = 0; cell < area; cell++) {
    const token = frame.number * area + cell;
    const x = (cell % columns) * 24, y = Math.floor(cell / columns) * 24;
    if (byId("heat").checked && highest > 0) {
      context.fillStyle = `rgba(213, 0, 90, ${0.75 * Math.sqrt(scores[token] / highest)})`;
      context.fillRect(x, y, 24, 24);
    }
    if (stageOf[token] === 1) {
      one++;
      context.beginPath();
      context.arc(x + 12, y + 12, 6, 0, 2 * Math.PI);
      context.fillStyle = colours.one;
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.fill();
      context.stroke();
    } else if (stageOf[token] === 2) {
      two++;
      for (const [colour, width] of [["#fff", 6], [colours.two, 3]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.strokeRect(x + 6, y + 6, 12, 12);
      }
    }
  }
  frame.caption.textContent = `${frame.time.toFixed(1)} s: ${one} + ${two} kept`;
  const words = `Frame at ${frame.time.toFixed(1)} s: ${one} tokens of Stage I and ${two} of ` +
    `Stage II kept out of ${area}`;
  frame.image.alt = words;
  frame.bar.setAttribute("aria-label", words);
  frame.bar.children[0].style.height = `${(100 * one) / area}%`;
  frame.bar.children[1].style.height = `${(100 * two) / area}%`;
}

const state = {};

function update() {
  const { stageOne, stageTwo } = selectVideoTokens(scores, { ...state, topP: data.top_p,
    grid: data.grid, permutation: data.permutation });
  const stageOf = new Uint8Array(scores.length);
  for (const token of stageOne) stageOf[token] = 1;
  for (const token of stageTwo) stageOf[token] = 2;
  const colours = { one: "#0072b2", two: "#e08600" };
  const highest = scores.reduce((most, score) => Math.max(most, score), 0);
  for (const frame of frames) paint(frame, stageOf, highest, colours);
  byId("share").textContent = `${+(100 * state.retention).toFixed(2)} %`;
  const kept = stageOne.length + stageTwo.length;
  byId("summary").textContent = `${kept} of ${scores.length} video tokens kept: ` +
    `${stageOne.length} in Stage I, ${stageTwo.length} in Stage II.`;
}

function serve() {
  Object.assign(state, { retention: data.retention, policy: data.policy });
  byId("retention").value = 100 * data.retention;
  byId("policy").value = data.policy;
  update();
}

byId("question").textContent = data.question;
byId("note").textContent = data.note;
for (const policy of data.policies) byId("policy").append(element("option", { textContent: policy }));
showNumbers();
showAnswer();
const frames = makeFrames();
serve();
byId("retention").addEventListener("input", (event) => {
  state.retention = event.target.valueAsNumber / 100;
  update();
});
byId("policy").addEventListener("change", (event) => {
  state.policy = event.target.value;
  update();
});
byId("heat").addEventListener("change", update);
byId("reset").addEventListener("click", serve);
