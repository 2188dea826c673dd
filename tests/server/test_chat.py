"""`roadkit chat` against a server process."""

import threading
import time
from typing import Any

from typer.testing import CliRunner

from roadkit.cli import app
from roadkit.client import Client, Talk, interleaved


def test_two_expressions_answer_side_by_side(server):
    options = ["-m", "quick", "-m", "lazy*0.5", "--say", "jumps over", "--max-tokens", "8"]
    result = CliRunner().invoke(app, ["chat", "--url", f"{server.url}/v1", *options])
    assert result.exit_code == 0, result.output
    assert "quick" in result.output and "lazy*0.5" in result.output


def test_a_refusal_is_shown_in_the_servers_words(server):
    result = CliRunner().invoke(app, ["chat", "--url", f"{server.url}/v1", "-m", "quik", "--say", "hi"])
    assert result.exit_code != 0 and "did you mean 'quick'" in str(result.exception)


def test_a_conversation_remembers(server):
    client = Client(f"{server.url}/v1")
    talk = Talk(client, client.models()[0], max_tokens=4)
    first = "".join(talk.say("the"))
    list(talk.say("quick"))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[1]["content"] == first
    client.close()


def test_an_answer_that_was_stopped_ends_and_does_not_mix_with_the_next():
    sent, released = [], threading.Event()

    class Slow(Client):
        def stream(self, body):
            asked = body["messages"][-1]["content"]
            try:
                for i in range(3):
                    sent.append((asked, i))
                    yield f"{asked}{i} "
                    if asked == "first":
                        released.wait(10)
            finally:
                sent.append((asked, "closed"))

    client = Slow("http://127.0.0.1:1")
    talk = Talk(client, "m")
    reading: Any = interleaved([talk.say("first")])
    assert next(reading) == "first0 "
    reading.close()  # Ctrl-C
    assert "".join(interleaved([talk.say("second")])) == talk.answer == "second0 second1 second2 "
    released.set()
    deadline = time.monotonic() + 10
    while ("first", "closed") not in sent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ("first", "closed") in sent and ("first", 2) not in sent
    assert talk.answer == "second0 second1 second2 "
    assert [message["content"] for message in talk.messages] == ["second", talk.answer]
    client.close()
