// Uses the generated types as a TypeScript program would: compiled by tsc, then run by node.
// node client.js BASE_URL TASK IMAGE_IN_BASE64 [KEY]

import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Answer = components["schemas"]["ClassifyAnswer"];
type Problem = components["schemas"]["Problem"];

const [baseUrl, task, image, key] = process.argv.slice(2) as [string, string, string, string?];
const headers = key ? { Authorization: `Bearer ${key}` } : {};
const client = createClient<paths, "application/json" | "application/problem+json">({ baseUrl, headers });

function known<T>(answer: { data?: T; error?: Problem }): T {
  if (answer.data === undefined) {
    throw new Error(`${answer.error?.status} ${answer.error?.code}: ${answer.error?.detail}`);
  }
  return answer.data;
}

function classNames(answer: Answer): string[] {
  return (answer.results[0]?.predictions ?? []).flatMap((one) => one.classes.map((c) => c.class_name));
}

const classified = known(
  await client.POST("/classify", { body: { images: [image], tasks: [task], top_k: 2 } }),
);
const byQuery = known(
  await client.POST("/classify", { params: { query: { task: [task], top_k: 1 } }, body: { images: [image] } }),
);
const form = new FormData();
form.append("image", new Blob([Buffer.from(image, "base64")], { type: "image/png" }), "a.png");
const uploaded = known(
  await client.POST("/classify", {
    params: { query: { task: [task] } },
    body: { image: [] },
    bodySerializer: () => form,
  }),
);
const embedded = known(await client.POST("/embed", { body: { images: [image] } }));
const embeddings = embedded.results.map((result) => result.embedding ?? []);
const scored = known(
  await client.POST("/score", {
    body: { embeddings, tasks: [task], fingerprint: embedded.fingerprint },
  }),
);
const listed = known(await client.GET("/tasks", { params: { query: { search: task } } }));
const missing = await client.GET("/tasks/{name}", { params: { path: { name: "no-such-task" } } });

console.log(
  JSON.stringify({
    classified: classNames(classified),
    byQuery: classNames(byQuery),
    uploaded: classNames(uploaded),
    scored: classNames(scored),
    listed: listed.tasks.map((one) => one.name),
    missing: missing.error?.code,
  }),
);
