"""Rules about what generate() does unless it is told otherwise: ends, sampling, penalties, lengths, padding."""

from __future__ import annotations

import json
from collections.abc import Iterator

from harness.files import ids_of
from harness.inputs import Generation
from harness.lint.subject import DEFAULT_NEW_TOKENS, Finding, Subject, Use, active, listed, places, told
from harness.record import Rendering

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
OF_BEAMS = ("length_penalty", "early_stopping")
ALWAYS_ACTIVE = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "num_beams",
    "num_return_sequences",
    "min_length",
    "min_new_tokens",
)
NEUTRAL = {"repetition_penalty": "1.0", "num_beams": "1", "num_return_sequences": "1"}  # of the others, 0


def eos(subject: Subject) -> Iterator[Finding]:
    """Which ids end generation, and whether the files agree on them."""
    files = subject.files
    if not files.config:
        return
    ids, file = files.eos_ids, files.generation_file
    in_config = ids_of(files.config.get("eos_token_id") or files.text_config.get("eos_token_id"))
    of_tokenizer = subject.pipeline.id(files.token("eos_token")) if subject.pipeline else None
    known = in_config or ids_of(of_tokenizer)
    if not ids:
        although = f", although config.json says {_ids(in_config)}" if in_config else ""
        yield Finding(
            "error",
            f"{file} names no eos_token_id{although}: output never ends by itself, always at max_new_tokens",
            f'Write "eos_token_id": {_ids(known) if known else "ID"} into {file}',
            file,
        )
        return
    if files.generation_config is None:
        yield Finding(
            "note",
            f"there is no generation_config.json: EOS {_ids(ids)} and all defaults come from config.json",
            "model.generation_config.save_pretrained(FOLDER) writes one",
            file,
        )
    if set(in_config) - set(ids):
        yield Finding(
            "warning",
            f"config.json says EOS {_ids(in_config)}, generation_config.json {_ids(ids)}: "
            "generate() takes the latter, other programs the former",
            'Write the same "eos_token_id" into both',
            file,
        )
    if of_tokenizer is not None and of_tokenizer not in ids:
        yield Finding(
            "warning",
            f"the tokenizer's EOS {files.token('eos_token')!r} ({of_tokenizer}) is not among the ids that end "
            f"generation, {_ids(ids)}",
            f'Write "eos_token_id": {_ids((*ids, of_tokenizer))} into {file}, if the model ends its output with it',
            file,
        )


def turn_end(subject: Subject) -> Iterator[Finding]:
    """The id that the chat template ends an assistant's turn with is to end generation."""
    files = subject.files
    if subject.pipeline is None or files.encoder_decoder or not files.eos_ids:
        return
    chats = [(where, seen) for where, _, seen in subject.prompts if isinstance(seen, Rendering) and seen.chat]
    open_ended = [(where, seen.closing_ids[0]) for where, seen in chats if seen.closing_ids]
    missed = [(where, token) for where, token in open_ended if token not in files.eos_ids]
    if missed:
        token = missed[0][1]
        yield Finding(
            "error",
            f"the chat template ends a turn with {subject.pipeline.tokenizer.id_to_token(token)!r} ({token}), but "
            f"generation ends at {_ids(files.eos_ids)}: answers run on into the next turn",
            f'Write "eos_token_id": {_ids((*files.eos_ids, token))} into {files.generation_file}',
            places(where for where, _ in missed),
        )


def hub_sampling(subject: Subject) -> Iterator[Finding]:
    """The model's own configuration samples, or shapes what the suite samples."""
    own, file = subject.files.generation, subject.files.generation_file
    samples = own.get("do_sample") is True
    shape = active(own, SAMPLING)
    what = told({"do_sample": "true", **shape})
    unset = [use for use in subject.uses if use.generation.do_sample is None]
    if samples and unset:
        yield Finding(
            "error",
            f"{file} says {what}, and {unset[0]} leaves do_sample unset: it samples, and is different each time",
            f"Write `do_sample: false`, or true with a seed, into generation {unset[0].generation_name!r} of the suite",
            places(unset),
        )
    elif samples and not subject.uses:
        yield Finding(
            "warning",
            f"{file} says {what}: generate() without arguments samples",
            "model.generate(…, do_sample=False); in a suite `do_sample: false`",
            file,
        )
    sampling = [use for use in subject.uses if use.generation.do_sample]
    shaped = [use for use in sampling if any(_leaves(use, name) for name in shape)]
    if shaped:
        silent = {name: value for name, value in shape.items() if any(_leaves(use, name) for use in shaped)}
        yield Finding(
            "warning",
            f"{file} adds {told(silent)} to what generation {shaped[0].generation_name!r} samples with",
            f"Write {listed([f'`{name}`' for name in silent])} into it, too",
            places(shaped),
        )


def hub_penalties(subject: Subject) -> Iterator[Finding]:
    """Arguments of the model's own configuration that change greedy output, too."""
    files = subject.files
    found = active(files.generation, ALWAYS_ACTIVE)
    open_uses = [use for use in subject.uses if any(_leaves(use, name) for name in found)]
    if subject.uses:
        found = {name: value for name, value in found.items() if any(_leaves(use, name) for use in subject.uses)}
    if found:
        settable = [f"`{name}: {NEUTRAL.get(name, 0)}`" for name in found if name in Generation.model_fields]
        others = [name for name in found if name not in Generation.model_fields]
        remedies = [f"Write {listed(settable)} into the generation configs of the suite"] if settable else []
        remedies += [f"Take {listed(others)} out of {files.generation_file}"] if others else []
        yield Finding(
            "warning",
            f"{files.generation_file} says {told(found)}: active in every call, greedy ones too",
            ". ".join(remedies),
            places(open_uses) or files.generation_file,
        )


def idle_arguments(subject: Subject) -> Iterator[Finding]:
    """Arguments that have no effect; and a configuration that holds them cannot be saved."""
    own, file = subject.files.generation, subject.files.generation_file
    idle = {} if own.get("do_sample") is True else active(own, SAMPLING)
    if own.get("num_beams") in (None, 1):
        idle |= active(own, OF_BEAMS)
    if idle:
        missing = "num_beams above 1" if set(idle) <= set(OF_BEAMS) else "do_sample: true"
        yield Finding(
            "warning",
            f"{file} says {told(idle)}, which {'have' if len(idle) > 1 else 'has'} no effect without {missing}; "
            "save_pretrained() refuses such a configuration (transformers 5: once it was changed)",
            f"Take {listed(list(idle))} out of {file}, or set there what gives effect to it",
            file,
        )


def in_config_json(subject: Subject) -> Iterator[Finding]:
    """Arguments of generate() in config.json: what becomes of them depends on the version and on another file."""
    files = subject.files
    found = active(files.text_config | files.config)
    own = files.generation_config
    if own is None and found:
        yield Finding(
            "note",
            f"config.json says {told(found)}; that holds only as long as there is no generation_config.json",
            "model.generation_config.save_pretrained(FOLDER) moves it there",
            "config.json",
        )
    ignored = {} if own is None else {name: value for name, value in found.items() if own.get(name) != value}
    if ignored:
        yield Finding(
            "warning",
            f"config.json says {told(ignored)}, which is not read: there is a generation_config.json",
            "Move it to generation_config.json, or take it out",
            "config.json",
        )


def pad(subject: Subject) -> Iterator[Finding]:
    """Whether there is a pad token, and whether it can be told from the end of a turn."""
    files, pipeline = subject.files, subject.pipeline
    text = files.token("pad_token")
    if pipeline is None:
        return
    if text is None:
        ends = files.token("eos_token")
        yield Finding(
            "warning",
            "the tokenizer has no pad token: tokenizer(…, padding=True) raises, and generate() pads with EOS",
            f'Write "pad_token": {json.dumps(ends or "A TOKEN OF ITS OWN")} into tokenizer_config.json, and pass '
            "attention_mask always",
            "tokenizer_config.json",
        )
        return
    token, own = pipeline.pad_token_id, files.generation.get("pad_token_id")
    if token in files.eos_ids:
        yield Finding(
            "warning",
            f"the pad token is EOS, {text!r} ({token}): without attention_mask, padding and ends of turns are alike",
            "Pass attention_mask to generate(), always; or make an unused token the pad token",
            "tokenizer_config.json",
        )
    if isinstance(own, int) and token is not None and own != token:
        yield Finding(
            "warning",
            f"the tokenizer pads with {token}, {files.generation_file} says {own}: without attention_mask, "
            "generate() takes the padding for text",
            f'Write "pad_token_id": {token} into {files.generation_file}',
            files.generation_file,
        )


def padding_side(subject: Subject) -> Iterator[Finding]:
    """A decoder that is padded on the right goes on from padding."""
    side, decoder = subject.files.padding_side, not subject.files.encoder_decoder
    wrong = [use for use in subject.uses if (use.model.padding_side or side) == "right"]
    if decoder and subject.pipeline and (wrong or (side == "right" and not subject.uses)):
        by_suite = bool(wrong) and all(use.model.padding_side for use in wrong)
        yield Finding(
            "warning",
            f"padding_side is right {'in the suite' if by_suite else 'as shipped'}: in a batch, a pipeline or "
            "tokenizer(…, padding=True) puts padding between prompt and answer",
            '`padding_side: left` under the model in the suite; in code tokenizer.padding_side = "left"',
            places(wrong) or "tokenizer_config.json",
        )


def lengths(subject: Subject) -> Iterator[Finding]:
    """max_length counts the prompt, and differs from version to version; unset, the library decides."""
    own, file = subject.files.generation, subject.files.generation_file
    limit = {name: own[name] for name in ("max_length", "min_length") if own.get(name) not in (None, 0)}
    unset = [use for use in subject.uses if use.generation.max_new_tokens is None]
    if "max_length" in limit and (unset or not subject.uses):
        who = f", and {unset[0]} sets no max_new_tokens" if unset else ""
        yield Finding(
            "error" if unset else "warning",
            f"{file} says {told(limit)}{who}: that counts the prompt, and what is left of it differs from version "
            "to version",
            f"Write `max_new_tokens: N` into generation {unset[0].generation_name!r} of the suite"
            if unset
            else "model.generate(…, max_new_tokens=N), always",
            places(unset) or file,
        )
    elif unset and own.get("max_new_tokens") is None:
        yield Finding(
            "note",
            f"{unset[0]} sets no max_new_tokens: the library's default of {DEFAULT_NEW_TOKENS} applies",
            f"Write `max_new_tokens: N` into generation {unset[0].generation_name!r} of the suite",
            places(unset),
        )


def _leaves(use: Use, name: str) -> bool:
    """Whether this generation of a suite leaves an argument to the model's own configuration."""
    return getattr(use.generation, name, None) is None


def _ids(ids: tuple[int, ...]) -> str:
    return str(ids[0]) if len(ids) == 1 else str(list(ids))
