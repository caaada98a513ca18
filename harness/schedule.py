"""Which requests are generated together. Pure.

float32 may batch as it likes: no token of 48 prompts changed over any shape that was tried. In 16 bits and in
quantized lanes 17 of 48 did, so there a row is alone unless the suite fixes a batch size, and then batches are
cut in the order of the suite: a test that is added at the end leaves the others' batches as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from harness.record import Batch, Request

FLOAT32_ROWS = 16  # a batch of 32 was slower than 16 on ragged prompts: padding costs more than it saves
PADDING_BUDGET = 1.3  # prompt tokens of a batch, padding included, over real ones


def unite(requests: Sequence[Request]) -> Mapping[Request, Request]:
    """Request -> the request that answers it: one that may be batched anyhow is answered by one that runs alone."""
    alone = {request for request in requests if request.layout == "alone"}
    answered = {}
    for request in requests:
        twin = request.replace(layout="alone") if request.layout == "any" else request
        answered[request] = twin if twin in alone else request
    return answered


def batches(
    requests: Sequence[Request], length: Callable[[Request], int], *, exact: bool, rows: int | None
) -> list[tuple[Request, ...]]:
    """Cut distinct requests into batches, in the order in which they are to run.

    exact: the target computes in float32, where a batch's shape does not change tokens.
    """
    groups: dict[tuple[Hashable, ...], list[Request]] = {}
    for request in requests:
        groups.setdefault(_together(request), []).append(request)
    made: list[tuple[Request, ...]] = []
    for key, members in groups.items():
        if key[0] == "batch":
            made.append(tuple(members))
        elif key[0] == "any" and exact:
            made.extend(_by_length(members, length, rows or FLOAT32_ROWS))
        else:
            step = 1 if key[0] == "alone" else rows or 1
            made.extend(tuple(members[i : i + step]) for i in range(0, len(members), step))
    return made


def _together(request: Request) -> tuple[Hashable, ...]:
    """Requests with equal keys may share a batch."""
    common = (
        request.generation,
        request.repeat,
        request.fresh_process,
        request.kind,
        request.attention,
        request.float32,
        request.resume_after,
        request.whole,
    )
    if isinstance(request.layout, Batch):
        return ("batch", request.layout, *common)
    # Sampling draws for all rows from one generator: neighbours would change what a row gets. The same holds
    # when the suite does not say: the model's own generation config may switch sampling on.
    single = request.layout == "alone" or request.kind not in ("generate", "replay") or request.resume_after
    if single or request.generation.do_sample is not False:
        return ("alone", *common)
    return ("any", *common)


def _by_length(requests: Sequence[Request], length: Callable[[Request], int], rows: int) -> list[tuple[Request, ...]]:
    """Longest first, so that running out of memory shows at once; cut where padding would pass the budget."""
    made: list[list[Request]] = []
    for request in sorted(requests, key=length, reverse=True):
        batch = made[-1] if made else []
        longest = length(batch[0]) if batch else 0
        real = sum(map(length, batch)) + length(request)
        if batch and len(batch) < rows and longest * (len(batch) + 1) <= PADDING_BUDGET * real:
            batch.append(request)
        else:
            made.append([request])
    return [tuple(batch) for batch in made]
