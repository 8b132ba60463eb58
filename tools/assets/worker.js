// A worker made of an iframe, for pages that are opened from a disk, where browsers start no workers.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const inside = frame.contentWindow;
      const send = data => inside.dispatchEvent(new MessageEvent("message", {data}));
      const load = url => new Promise((done, fail) => {
        const script = inside.document.createElement("script");
        script.src = new URL(url, document.baseURI).href;
        script.onload = done;
        script.onerror = fail;
        inside.document.body.appendChild(script);
      });
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}));
      inside.importScripts = (...urls) =>
        urls.reduce((before, url) => before.then(() => load(url)), Promise.resolve());
      const ready = load(url);
      this.postMessage = data => ready.then(() => send(data));
      this.terminate = () => frame.remove();
    }
  };
}
