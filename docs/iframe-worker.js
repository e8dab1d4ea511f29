// Browsers start no worker from a file. Where the site is read from a folder, the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inner = this.frame.contentWindow
      inner.document.open()
      inner.document.write(
        "<script>" +
          "self.postMessage = data => parent.dispatchEvent(new MessageEvent('message', {data, source: self}));" +
          "self.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise(done => {" +
          "const script = document.createElement('script'); script.src = url; script.onload = done;" +
          "document.body.append(script)})), Promise.resolve())" +
          "</script><script src='" + url + "'></script>"
      )
      inner.document.close()
      window.addEventListener("message", event => {
        if (event.source === inner) {
          const heard = new MessageEvent("message", { data: event.data })
          this.dispatchEvent(heard)
          this.onmessage?.(heard)
        }
      })
    }

    postMessage(data) {
      const inner = this.frame.contentWindow
      const send = () => inner.dispatchEvent(new MessageEvent("message", { data }))
      inner.document.readyState === "complete" ? send() : inner.addEventListener("load", send)
    }

    terminate() {
      this.frame.remove()
    }
  }
}
