// The picture: 16-bit pixels through a window, with a map or masks laid over them.
"use strict";

const TOP = 65535;
const MASK_COLOURS = [[255, 153, 0], [0, 190, 255], [120, 220, 90], [255, 90, 160], [190, 140, 255], [255, 225, 60]];

// Inferno at nine places, without its black; colours between them are mixed.
const HEAT = [[40, 11, 84], [87, 15, 109], [130, 37, 103], [170, 58, 87], [212, 72, 66], [241, 96, 93], [245, 125, 21], [252, 173, 18], [252, 255, 164]];

export class View {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.picture = null;
    this.overlay = null;
    this.opacity = 0.5;
    this.inverted = false;
    this.level = TOP / 2;
    this.width = TOP;
    this._listen();
  }

  show(picture) {
    this.picture = picture;
    this.overlay = null;
    this.canvas.width = picture.width;
    this.canvas.height = picture.height;
    this.reset();
  }

  clear() {
    this.picture = null;
    this.overlay = null;
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  reset() {
    this.level = Math.round(TOP / 2);
    this.width = TOP;
    this.inverted = false;
    this.draw();
  }

  window(level, width) {
    this.level = Math.min(TOP, Math.max(0, level));
    this.width = Math.min(TOP, Math.max(64, width));
    this.draw();
  }

  // An overlay is {colours: Uint8ClampedArray RGB a pixel, weight: Float32Array in [0, 1]}, as large as the picture.
  lay(overlay) {
    this.overlay = overlay;
    this.draw();
  }

  draw() {
    const picture = this.picture;
    if (!picture) return;
    const table = new Uint8ClampedArray(TOP + 1);
    const low = this.level - this.width / 2;
    for (let value = 0; value <= TOP; value++) {
      const shade = Math.round(((value - low) / this.width) * 255);
      table[value] = this.inverted ? 255 - Math.min(255, Math.max(0, shade)) : shade;
    }
    const count = picture.width * picture.height;
    const made = new ImageData(picture.width, picture.height);
    const { data, channels } = picture;
    for (let place = 0; place < count; place++) {
      for (let colour = 0; colour < 3; colour++) {
        made.data[4 * place + colour] = table[data[place * channels + (channels === 3 ? colour : 0)]];
      }
      made.data[4 * place + 3] = 255;
    }
    if (this.overlay && this.opacity > 0) {
      for (let place = 0; place < count; place++) {
        const weight = this.opacity * this.overlay.weight[place];
        if (weight === 0) continue;
        for (let colour = 0; colour < 3; colour++) {
          const at = 4 * place + colour;
          made.data[at] = (1 - weight) * made.data[at] + weight * this.overlay.colours[3 * place + colour];
        }
      }
    }
    this.canvas.getContext("2d").putImageData(made, 0, 0);
    this.changed(this);
  }

  _listen() {
    let from = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      from = { x: event.clientX, y: event.clientY, level: this.level, width: this.width };
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      const step = TOP / Math.max(200, this.canvas.clientWidth);
      this.window(from.level + (from.y - event.clientY) * step, from.width + (event.clientX - from.x) * step);
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => { from = null; });
    this.canvas.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 4096 : 1024;
      const moves = { ArrowLeft: [0, -step], ArrowRight: [0, step], ArrowUp: [step, 0], ArrowDown: [-step, 0] };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      this.window(this.level + move[0], this.width + move[1]);
    });
  }
}

// Read what /image answered.
export async function pictureOf(response) {
  const number = (name) => Number(response.headers.get(name));
  const buffer = await response.arrayBuffer();
  return {
    data: new Uint16Array(buffer), height: number("X-Height"), width: number("X-Width"),
    channels: number("X-Channels"), bits: number("X-Bits"),
  };
}

async function greysOf(base64, width, height) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Float32Array.from({ length: width * height }, (_, place) => data[4 * place] / 255);
}

export async function heatOverlay(base64, picture) {
  const weight = await greysOf(base64, picture.width, picture.height);
  const colours = new Uint8ClampedArray(3 * weight.length);
  for (let place = 0; place < weight.length; place++) {
    const at = weight[place] * (HEAT.length - 1);
    const first = Math.min(HEAT.length - 2, Math.floor(at));
    for (let colour = 0; colour < 3; colour++) {
      colours[3 * place + colour] = HEAT[first][colour] + (at - first) * (HEAT[first + 1][colour] - HEAT[first][colour]);
    }
  }
  return { colours, weight };
}

export async function maskOverlay(masks, picture) {
  const count = picture.width * picture.height;
  const colours = new Uint8ClampedArray(3 * count);
  const weight = new Float32Array(count);
  for (const [number, mask] of masks.entries()) {
    const held = await greysOf(mask.png, picture.width, picture.height);
    const colour = colourOf(number);
    for (let place = 0; place < count; place++) {
      if (held[place] < 0.5) continue;
      weight[place] = 1;
      colours.set(colour, 3 * place);
    }
  }
  return { colours, weight };
}

export const maskColour = (number) => `rgb(${colourOf(number).join(" ")})`;

// The colours of overlays elsewhere, and beyond these others as far from each other as a circle of hues allows.
function colourOf(number) {
  if (number < MASK_COLOURS.length) return MASK_COLOURS[number];
  const hue = (number * 137.5) % 360;
  return [0, 8, 4].map((shift) => {
    const place = (shift + hue / 30) % 12;
    return Math.round(255 * (0.6 - 0.3 * Math.max(-1, Math.min(place - 3, 9 - place, 1))));
  });
}
