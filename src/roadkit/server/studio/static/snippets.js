// What the columns ask, as a shell script and as a Python program. Neither ever holds the key.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asCurl(origin, path, bodies, keyed) {
  const lines = bodies.map((body) => {
    const key = keyed ? ` -H "Authorization: Bearer $ROADKIT_KEY"` : "";
    const json = quoted(JSON.stringify(body));
    return `curl -s ${origin}${path} -H 'Content-Type: application/json'${key} \\\n  -d ${json} &`;
  });
  return `# sent at once, answered in one batch\n${lines.join("\n")}\nwait\n`;
}

export function asPython(origin, bodies, keyed) {
  const { model: _, messages, prompt, ...settings } = bodies[0];
  const chat = messages !== undefined;
  const options = Object.entries(settings).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  const asked = chat ? `messages=[{"role": "user", "content": PROMPT}]` : "prompt=PROMPT";
  const models = bodies.map((body) => `    ${JSON.stringify(body.model)},\n`).join("");
  return `import asyncio
${keyed ? "import os\n" : ""}
from openai import AsyncOpenAI

PROMPT = ${JSON.stringify(chat ? messages[0].content : prompt)}
MODELS = [
${models}]


async def main():
    client = AsyncOpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=${keyed ? 'os.environ["ROADKIT_KEY"]' : '"none"'})
    ask = client.${chat ? "chat.completions" : "completions"}.create
    answers = await asyncio.gather(
        *(ask(model=model, ${asked}, ${options.join(", ")}) for model in MODELS)
    )  # one batch
    for model, answer in zip(MODELS, answers):
        print(f"{model:32} {answer.choices[0].${chat ? "message.content" : "text"}!r}")


asyncio.run(main())
`;
}
