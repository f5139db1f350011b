// Scores completions of one prompt from JavaScript, with a client that @grpc/grpc-js makes from the protos.
//
//   npm install
//   node score.mjs localhost:50051 story@stable "Once upon a time" "there was a cat." "the end."
//   node score.mjs --stream localhost:50051 story@stable "Once upon a time" "there was a cat." "the end."
//
// Without --stream all completions go in one call; with it each goes by itself, and is printed when it is scored.
// Prints a line of JSON for each answer. A call that fails is printed with its typed reason, and exits with 1.
// A token is taken from RM_TOKEN, the training run's name from RM_RUN.

import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const TIMEOUT_MS = 60_000;

// With `oneofs` a message says which choice is set: `outcome` is 'score' or 'error'.
const definition = protoLoader.loadSync(['rm_api/v1/scoring.proto', 'rm_api/v1/errors.proto'], {
  includeDirs: [fileURLToPath(new URL('../../proto', import.meta.url))],
  keepCase: true,
  longs: Number,
  enums: String,
  oneofs: true,
  defaults: true,
});
const { ScoringService } = grpc.loadPackageDefinition(definition).rm_api.v1;
const parseError = definition['rm_api.v1.Error'].deserialize;

function callMetadata() {
  const metadata = new grpc.Metadata();
  if (process.env.RM_TOKEN) metadata.set('authorization', `Bearer ${process.env.RM_TOKEN}`);
  return metadata;
}

function scoreRequest(model, prompt, completions) {
  return {
    model,
    run: process.env.RM_RUN ?? '',
    groups: [{ prompt: { text: prompt }, completions: completions.map((text) => ({ text })) }],
  };
}

// A score or an error for each completion, and what gave them. An item without a score has no number.
function answerOf(response) {
  return {
    model: response.model,
    version: response.version,
    digest: response.digest,
    items: response.results.map((result) =>
      result.outcome === 'score' ? { score: result.score.value } : { error: reasonOf(result.error) },
    ),
  };
}

function reasonOf({ reason, message, retry_after_seconds }) {
  return { reason, message, ...(retry_after_seconds > 0 && { retry_after_seconds }) };
}

// Programs decide by the typed reason in the trailing metadata, people read the text.
function failureOf(error) {
  const [typed] = error.metadata?.get('rm-error-bin') ?? [];
  return { status: grpc.status[error.code], ...(typed ? reasonOf(parseError(typed)) : { message: error.details }) };
}

function scoreOnce(client, request) {
  return new Promise((resolve, reject) => {
    client.Score(request, callMetadata(), { deadline: Date.now() + TIMEOUT_MS }, (error, response) =>
      error ? reject(error) : resolve(answerOf(response)),
    );
  });
}

async function* scoreEach(client, model, prompt, completions) {
  const call = client.ScoreStream(callMetadata(), { deadline: Date.now() + TIMEOUT_MS });
  completions.forEach((text, index) => call.write({ id: `${index}`, request: scoreRequest(model, prompt, [text]) }));
  call.end();
  for await (const { id, outcome, response, error } of call) {
    yield { id, ...(outcome === 'response' ? answerOf(response) : { error: reasonOf(error) }) };
  }
}

const { values: options, positionals } = parseArgs({
  options: { stream: { type: 'boolean', default: false } },
  allowPositionals: true,
});
const [server, model, prompt, ...completions] = positionals;
if (completions.length === 0) {
  console.error('usage: node score.mjs [--stream] HOST:PORT MODEL PROMPT COMPLETION…');
  process.exit(2);
}

const client = new ScoringService(server, grpc.credentials.createInsecure());
try {
  if (options.stream) {
    for await (const answer of scoreEach(client, model, prompt, completions)) console.log(JSON.stringify(answer));
  } else {
    console.log(JSON.stringify(await scoreOnce(client, scoreRequest(model, prompt, completions))));
  }
} catch (error) {
  console.log(JSON.stringify(failureOf(error)));
  process.exitCode = 1;
} finally {
  client.close();
}
