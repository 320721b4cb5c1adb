"use strict";
(() => {
  document.documentElement.classList.add("js");
  const get = (id) => document.getElementById(id);

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      let copied = true;
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        const range = document.createRange();
        range.selectNodeContents(code);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        copied = document.execCommand("copy");
      }
      get("copied").textContent = copied ? "Copied." : "The command is selected; copy it with the keyboard.";
    });
  }

  if (!get("comparison")) return;
  const data = JSON.parse(get("comparison").textContent);
  const rows = [get("left-row"), get("right-row")];
  const canvases = [get("left-picture"), get("right-picture")];
  const images = new Map();
  let sample = 0;
  let frame = 0;
  let drawing = 0;

  // The pixels of one frame of a sample, decoded once.
  const load = async (row, at) => {
    const file = data.places[row][at];
    if (!images.has(file)) {
      const image = new Image();
      image.src = data.files[file];
      images.set(file, image.decode().then(() => image));
    }
    return images.get(file);
  };

  const paint = (canvas, image) => {
    canvas.width = data.width;
    canvas.height = data.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, frame * data.width, 0, data.width, data.height, 0, 0, data.width, data.height);
    return context.getImageData(0, 0, data.width, data.height);
  };

  // The largest difference of the channels, stretched so that the largest of all is white.
  const paintDifference = (left, right) => {
    const values = new Uint8ClampedArray(left.data.length / 4);
    for (let at = 0; at < left.data.length; at += 4) {
      for (let channel = 0; channel < 3; channel++) {
        values[at / 4] = Math.max(values[at / 4], Math.abs(left.data[at + channel] - right.data[at + channel]));
      }
    }
    const largest = values.reduce((a, b) => Math.max(a, b), 0);
    const canvas = get("difference");
    canvas.width = data.width;
    canvas.height = data.height;
    const context = canvas.getContext("2d");
    const map = context.createImageData(data.width, data.height);
    values.forEach((value, at) => {
      const grey = largest ? (value * 255) / largest : 0;
      map.data.set([grey, grey, grey, 255], at * 4);
    });
    context.putImageData(map, 0, 0);
    get("difference-caption").textContent = largest
      ? `Difference of the two: black is none, white is ${largest} of 255 levels.`
      : "Difference of the two: none.";
  };

  const chosen = () => rows.map((select) => Number(select.value));
  const distances = () => {
    const [low, high] = chosen().sort((a, b) => a - b);
    return low === high ? data.samples.map(() => null) : data.psnr[`${low}-${high}`];
  };
  const text = (distance) => (distance === null ? "equal" : `${distance.toFixed(1)} dB`);

  const draw = async () => {
    const number = ++drawing;
    const pair = chosen();
    const loaded = await Promise.all(pair.map((row) => load(row, sample)));
    if (number !== drawing) return;
    const [left, right] = canvases.map((canvas, at) => paint(canvas, loaded[at]));
    paintDifference(left, right);
    const distance = text(distances()[sample]);
    const names = pair.map((row) => data.names[row]);
    canvases.forEach((canvas, at) => canvas.setAttribute("aria-label", `${data.samples[sample]}, ${names[at]}`));
    get("difference").setAttribute("aria-label", `Map of the difference, ${data.samples[sample]}, PSNR ${distance}`);
    get("pair-caption").textContent = `${data.samples[sample]}, PSNR ${distance}. Left: ${names[0]}. Right: ${names[1]}.`;
  };

  const list = () => {
    const values = distances();
    const order = data.samples.map((_, at) => at);
    order.sort((a, b) => (values[a] ?? Infinity) - (values[b] ?? Infinity) || a - b);
    const items = order.map((at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(at === sample));
      for (const part of [data.samples[at], text(values[at])]) {
        button.append(Object.assign(document.createElement("span"), { textContent: part }));
      }
      button.addEventListener("click", () => {
        sample = at;
        for (const other of get("samples").querySelectorAll("button")) {
          other.setAttribute("aria-pressed", String(other === button));
        }
        draw();
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    });
    get("samples").replaceChildren(...items);
    return order[0];
  };

  for (const select of rows) {
    select.addEventListener("change", () => {
      list();
      draw();
      const values = distances().filter((value) => value !== null);
      get("status").textContent = values.length
        ? `${values.length} of ${data.samples.length} samples differ, by ${text(Math.min(...values))} at worst.`
        : "The two rows are equal.";
    });
  }

  const divider = get("divider");
  const move = () => get("frame").style.setProperty("--at", `${divider.value}%`);
  divider.addEventListener("input", move);
  const drag = (event) => {
    if (!event.buttons) return;
    const box = get("frame").getBoundingClientRect();
    divider.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
    move();
  };
  get("frame").addEventListener("pointerdown", (event) => {
    get("frame").setPointerCapture(event.pointerId);
    drag(event);
  });
  get("frame").addEventListener("pointermove", drag);

  if (data.frames > 1) {
    const number = get("frame-number");
    const play = get("play");
    let timer = null;
    const show = (at) => {
      frame = at;
      number.value = String(at);
      get("frame-text").textContent = `${at + 1} of ${data.frames}`;
      draw();
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    };
    const start = () => {
      timer = setInterval(() => show((frame + 1) % data.frames), 125);
      play.textContent = "Pause";
    };
    number.addEventListener("input", () => {
      stop();
      show(Number(number.value));
    });
    play.addEventListener("click", () => (timer === null ? start() : stop()));
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
  }

  sample = list();
  list();
  draw();
})();
