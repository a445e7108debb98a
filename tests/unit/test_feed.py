"""What listeners to events missed, and who is cut off."""

import asyncio
import json

from qgisd.http.feed import Feed, Subscription
from qgisd.supervisor.stats import Happening
from qgisd.words import NoteKind


def happening() -> Happening:
    return Happening(
        time=0.0, kind=next(iter(NoteKind)), level="info", pool="p", project="a\nb",
        generation=None, worker=None, reason="", request_id="", text="x\n\nid: 7\ndata: {}",
    )  # fmt: skip


def test_all_that_is_kept_is_told_to_who_missed_it_and_no_more_waits() -> None:
    async def scenario() -> None:
        cuts: list[int] = []
        feed = Feed(dict)
        for _ in range(600):
            feed.publish(happening())
        client = Subscription(False, lambda: cuts.append(1))
        feed.subscribe(client, 0)
        assert not cuts
        told = (await client.next() or b"").decode()
        numbers = [int(line[4:]) for line in told.splitlines() if line.startswith("id: ")]
        assert numbers == list(range(101, 601))
        # What is in an event ends none.
        events = [event.split("\n") for event in told.strip().split("\n\n")]
        assert {len(lines) for lines in events} == {3}
        assert json.loads(events[0][2].removeprefix("data: "))["project"] == "a\nb"
        for _ in range(501):
            feed.publish(happening())
        assert cuts == [1]

    asyncio.run(scenario())
