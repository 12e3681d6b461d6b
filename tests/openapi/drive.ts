// Drives a container from nothing to nothing with a client that is made of the document.
// node out/drive.js BASE TOKEN IMAGE ID
import createClient from "openapi-fetch";
import type { components, paths } from "./lightd.js";

const [base, token, image, id] = process.argv.slice(2);
if (!base || !token || !image || !id) throw new Error("usage: drive BASE TOKEN IMAGE ID");

const lightd = createClient<paths>({
  baseUrl: base,
  headers: { Authorization: `Bearer ${token}`, Accept: "Application/vnd.pkglatv1+json" },
});

type Refusal = components["schemas"]["Error"];
type Container = components["schemas"]["Container"];

/** What was answered, or an error that says why it was not. */
function answered<T>(outcome: { data?: T; error?: Refusal; response: Response }): T {
  if (outcome.data !== undefined) return outcome.data;
  throw new Error(`${outcome.response.status} ${outcome.error?.code}: ${outcome.error?.error}`);
}

const container = { params: { path: { id } } };

async function until(what: string, holds: (seen: Container) => boolean): Promise<Container> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const seen = answered(await lightd.GET("/containers/{id}", container));
    if (holds(seen)) return seen;
    if (Date.now() > deadline) throw new Error(`not ${what}: ${JSON.stringify(seen)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const volume = answered(await lightd.POST("/volumes", { body: { name: "typed" } }));
const made = answered(
  await lightd.POST("/containers", {
    body: {
      internal_id: id,
      image,
      volume_id: volume.volume_id,
      startup_command: 'echo Ready; while read line; do echo "got $line"; done',
      start_pattern: "^Ready",
      limits: { memory: 64 << 20 },
    },
  }),
);
if ("dry_run" in made) throw new Error("it was only tried out");
console.log("created", made.state);
await until("installed", (seen) => seen.install_state === "ready");

answered(await lightd.POST("/containers/{id}/start", container));
const up = await until("running", (seen) => seen.state === "running");
const startedAt: number | null = up.started_at;
console.log("running", startedAt !== null);

answered(await lightd.POST("/containers/{id}/command", { ...container, body: { command: "hello" } }));
for (let tries = 0; ; tries++) {
  const logs = answered(
    await lightd.GET("/containers/{id}/logs", {
      params: { path: { id }, query: { lines: 100, grep: "^got hello" } },
    }),
  );
  if (logs.data.includes("got hello")) break;
  if (tries > 300) throw new Error("the line did not come back");
  await new Promise((resolve) => setTimeout(resolve, 100));
}
console.log("console", "got hello");

answered(await lightd.POST("/containers/{id}/stop", container));
await until("offline", (seen) => seen.state === "offline");
answered(await lightd.DELETE("/containers/{id}", container));
const gone = await lightd.GET("/containers/{id}", container);
console.log("gone", gone.response.status, gone.error?.code);
answered(
  await lightd.DELETE("/volumes/{id}", { params: { path: { id: volume.volume_id } } }),
);
console.log("done");

// What the document forbids does not compile.
export const forbidden = [
  // @ts-expect-error there is no such call
  () => lightd.POST("/containers/{id}/begin", container),
  // @ts-expect-error a size is a number
  () => lightd.POST("/volumes", { body: { size: "3" } }),
  // @ts-expect-error these have to be there
  () => lightd.POST("/containers", { body: { internal_id: "a" } }),
  // @ts-expect-error a state is one of those that there are
  (seen: Container) => seen.state === "asleep",
];
