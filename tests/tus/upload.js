// Uploads a file as browsers and Uppy do, with the client that they use, and says on standard output what
// happens, one JSON object a line. Lines on standard input say when to go on.
//
//   node upload.js ENDPOINT FILE OPTIONS
//
// OPTIONS is JSON: headers, metadata, chunkSize, parallelUploads, deferred, storage (a file that remembers
// uploads), holdAt (stop before the piece at this offset until a line comes: "go", or "pause" and then "go").
import fs from 'node:fs'
import readline from 'node:readline'
import { PassThrough } from 'node:stream'
import * as tus from 'tus-js-client'

const [endpoint, path, text] = process.argv.slice(2)
const options = JSON.parse(text)
const say = (event, more) => console.log(JSON.stringify({ event, ...more }))

const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()
let held = options.holdAt === undefined

// A stream whose length is not known, or a file that can be read from anywhere.
const file = fs.createReadStream(path)
const source = options.deferred ? file.pipe(new PassThrough()) : file
const upload = new tus.Upload(source, {
  endpoint,
  headers: options.headers,
  metadata: options.metadata,
  chunkSize: options.chunkSize ?? Infinity,
  parallelUploads: options.parallelUploads ?? 1,
  uploadLengthDeferred: options.deferred ?? false,
  urlStorage: options.storage && new tus.FileUrlStorage(options.storage),
  storeFingerprintForResuming: Boolean(options.storage),
  retryDelays: Array(100).fill(100),
  async onBeforeRequest(request) {
    const offset = Number(request.getHeader('Upload-Offset'))
    if (request.getMethod() !== 'PATCH' || held || offset < options.holdAt) return
    held = true
    say('held', { offset })
    let line = (await lines.next()).value
    if (line === 'pause') {
      // The client waits for this very request before it has stopped.
      upload.abort().then(async () => {
        say('paused', {})
        await lines.next()
        upload.start()
      })
    }
  },
  onAfterResponse(request, response) {
    say('answer', {
      method: request.getMethod(),
      status: response.getStatus(),
      offset: response.getHeader('Upload-Offset') ?? null,
    })
  },
  onShouldRetry(error) {
    say('retry', { status: error.originalResponse?.getStatus() ?? null })
    return true
  },
  onSuccess() {
    say('success', { url: upload.url })
    process.exit(0)
  },
  onError(error) {
    say('error', { message: error.message })
    process.exit(1)
  },
})

const previous = options.storage ? await upload.findPreviousUploads() : []
say('found', { previous: previous.length })
if (previous.length > 0) upload.resumeFromPreviousUpload(previous[0])
upload.start()
