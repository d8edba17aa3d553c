// The official TypeScript SDK as an agent's client: lists the tools, then makes the calls in sequence.
// stdin: {"server": {"command", "args", "env", "cwd"} or {"url", "headers"}, "calls": [[tool, arguments], …]}
// The argument "$RUN" is replaced by the id of the last run that was started.
// stdout: one JSON line for each call: {"result": …}, or {"thrown": message} if the SDK itself rejects the response.
// Needs @modelcontextprotocol/sdk in a node_modules folder next to it.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { readFileSync } from 'node:fs';

const { server, calls } = JSON.parse(readFileSync(0, 'utf8'));
const client = new Client({ name: 'tests', version: '1' });
await client.connect(
  server.url
    ? new StreamableHTTPClientTransport(new URL(server.url), { requestInit: { headers: server.headers } })
    : new StdioClientTransport({ ...server, stderr: 'inherit' }),
);
// From here on the SDK checks every structured content against the tool's output schema.
const { tools } = await client.listTools();
console.log(JSON.stringify({ tools }));
let run;
for (const [name, given] of calls) {
  const args = Object.fromEntries(Object.entries(given).map(([key, value]) => [key, value === '$RUN' ? run : value]));
  try {
    const result = await client.callTool({ name, arguments: args });
    run = result.structuredContent?.runs?.[0]?.id ?? run;
    console.log(JSON.stringify({ result }));
  } catch (error) {
    console.log(JSON.stringify({ thrown: String(error.message) }));
  }
}
await client.close();
