"""Whether the prompt reaches the model as it was meant: chat template, special tokens, tokenizer.

`problems` and `hazards` judge a Rendering wherever it comes from. A problem is wrong in this prompt as the model
gets it; a hazard is what careless code around the same model and tokenizer would fall into.
To add a rule: write a function of its kind, add it to RULES, and a field of the same name that switches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, StrictBool

from harness.expectations.content import quote
from harness.expectations.hazards import (
    EXCERPT,
    Hazard,
    Problem,
    difference,
    excerpt,
    hazards,
    leading_bos,
    some,
    special_from_user_text,
    spelled,
    system_turn_added,
    tight,
)
from harness.expectations.shorthand import Written
from harness.record import Completion, Rendering, Request, Verdict
from harness.rendering import after, before, pieces, shared
from harness.wording import counted

SHORTEST_MARKUP = 4  # characters; less is found in any text


class PromptPipeline(Written):
    """The prompt reaches the model as it was meant: template, special tokens, ids."""

    catches: ClassVar[tuple[str, ...]] = ("T1", "T2", "T4", "T5", "T7", "T8", "T9", "P6")
    not_for: ClassVar[Mapping[str, str]] = {
        "encoder_decoder": "an encoder reads its input whole: the rules of a prompt that is gone on with do not apply"
    }
    bos: Literal["as_shipped", "one", "none", "any"] = Field(
        "as_shipped",
        description="BOS at the start: as_shipped is never two, and one where the tokenizer adds one to plain text.",
    )
    generation_prompt: StrictBool = Field(True, description="The prompt ends where the model's own turn begins.")
    template_once: StrictBool = Field(True, description="No message already holds the markup of a chat template.")
    messages_kept: StrictBool = Field(True, description="All that user and system say is in the prompt.")
    continues: StrictBool = Field(True, description="continue_final_message leaves the assistant's turn open.")
    round_trip: StrictBool = Field(True, description="The ids, decoded, are the text again.")
    special_in_user_text: Literal["any", "plain", "special"] = Field(
        "any",
        description="Special tokens that user text spells: plain: are read as text; special: as the tokens themselves.",
    )
    same_on_any_date: StrictBool = Field(True, description="The template does not write the date.")
    system_added: Literal["any", "none"] = Field("any", description="none: the template adds no system turn.")
    fits: StrictBool = Field(True, description="Every id has an embedding, and the tokenizer would truncate nothing.")
    refuse: tuple[Hazard, ...] = Field((), description="Hazards that are to be failures as well, by name.")

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request.replace(kind="render", layout="alone"),)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        rendering = completions[0].rendering
        if rendering is None:
            return Verdict("skipped", "this backend has no tokenizer and template that could be looked at")
        looked_at = rules(rendering, self)
        if not looked_at and not self.refuse:
            return Verdict("skipped", "plain text: no rule of a chat applies, and the others are switched off")
        wrong = problems(rendering, self)
        named = {problem.name for problem in wrong}
        risky = [hazard for hazard in hazards(rendering) if hazard.name not in named]
        numbers: dict[str, float | int | str] = {"prompt_tokens": len(rendering.ids)}
        numbers |= {"problems": ", ".join(sorted(named))} if wrong else {}
        numbers |= {"hazards": ", ".join(hazard.name for hazard in risky)} if risky else {}
        details = (*map(str, wrong), *(f"hazard  {hazard}" for hazard in risky))
        if wrong:
            more = f" (and {counted(len(wrong) - 1, 'more problem')})" if len(wrong) > 1 else ""
            return Verdict("failed", f"{wrong[0].sentence}{more}", numbers, details)
        kind = "chat" if rendering.chat else "plain text, without a chat template,"
        seen = f"{kind} of {counted(len(rendering.ids))}, sound in {', '.join(looked_at)}"
        return Verdict("passed", seen, numbers, details)


def problems(rendering: Rendering, settings: PromptPipeline | None = None) -> list[Problem]:
    """All that is wrong, by the rules that are switched on."""
    settings = settings or PromptPipeline()
    if rendering.text and not rendering.ids:  # whatever else is said would follow from it
        return [_no_ids(rendering)]
    found = [RULES[name](rendering, settings) for name in rules(rendering, settings)]
    refused = [hazard for hazard in hazards(rendering) if hazard.name in settings.refuse]
    return [problem for problem in found if problem] + refused


def rules(rendering: Rendering, settings: PromptPipeline) -> list[str]:
    """The rules that are switched on and apply to a prompt of this kind."""
    on = [name for name in RULES if getattr(settings, name) not in (False, "any")]
    return [name for name in on if rendering.chat or name not in OF_CHATS]


def _no_ids(rendering: Rendering) -> Problem:
    return Problem(
        "no_ids",
        f"the tokenizer makes no ids at all of {quote(rendering.text[:EXCERPT])}",
        "transformers chose a tokenizer class that does not fit the files: load them with PreTrainedTokenizerFast, "
        "save_pretrained() what it gives, and look at `model_type` in config.json and `tokenizer_class` in "
        "tokenizer_config.json",
    )


def _bos(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    bos = spelled(rendering, rendering.bos_token_id)
    count, with_special = leading_bos(rendering, rendering.ids), leading_bos(rendering, rendering.ids_with_special)
    if settings.bos == "none":
        return Problem("bos", f"the prompt begins with {bos}", _one_bos_less(rendering, bos)) if count else None
    if count > 1:
        return Problem("bos", f"the prompt begins with {bos} {count} times", _one_bos_less(rendering, bos))
    if count == 1 or (settings.bos == "as_shipped" and not with_special):
        return None
    if rendering.bos_token_id is None:
        return Problem("bos", "the tokenizer has no BOS token", "Set bos_token in tokenizer_config.json, or `bos: any`")
    where = ", which the tokenizer puts before plain text" if with_special else ""
    remedy = "Put {{ bos_token }} first in the chat template" if rendering.chat else f"Write {bos} first in the text"
    return Problem("bos", f"the prompt does not begin with {bos}{where}", f"{remedy}, or say `bos: none`")


def _one_bos_less(rendering: Rendering, bos: str) -> str:
    written = rendering.text.startswith(bos)
    if not rendering.chat:
        return f"Take {bos} out of the text: the tokenizer adds it" if written else "Set add_bos_token to false"
    if written:
        return f"Take {bos} out of the start of the chat template"
    return "Tokenise the template's text with add_special_tokens=False"


def _generation_prompt(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    if rendering.continues:
        return None
    if not rendering.chat:
        return _ended(rendering)
    text, without = rendering.text, rendering.without_generation_prompt
    if without is None:
        return Problem(
            "generation_prompt",
            "the last message is the assistant's, and the template closes it: the model begins another turn",
            "Say `continue_final_message: true` to have it gone on with, or take the message out",
        )
    answer_follows = before(rendering.closed, rendering.answer)
    if text == without:
        header = answer_follows[shared(answer_follows, text) :]
        if not header.strip():  # [/INST] and the like: the answer just follows
            return _unmarked(rendering)
        return Problem(
            "generation_prompt",
            f"the template ignores add_generation_prompt: {quote(header)}, with which an answer begins, is missing",
            f"Add {{% if add_generation_prompt %}}{{{{ {header!r} }}}}{{% endif %}} at the end of the chat template",
        )
    tokens = rendering.special_tokens
    added, dropped = pieces(text, tokens), pieces(without, tokens)
    common = shared(added, dropped)
    # What the template closes a finished chat with may go.
    if common == len(added) or "".join(piece for piece in dropped[common:] if piece not in tokens).strip():
        return Problem(
            "generation_prompt",
            f"add_generation_prompt changes what stands before it: {difference(without, text)}",
            "Let the chat template only add to its end where add_generation_prompt is set",
        )
    return None


def _unmarked(rendering: Rendering) -> Problem | None:
    if not rendering.markup or rendering.markup[1].strip():
        return None
    return Problem(
        "generation_prompt",
        "the template writes nothing between what the user says and the answer: the model cannot tell who speaks",
        "Take the chat template that the model was trained with: chat_template.jinja beside its weights",
    )


def _ended(rendering: Rendering) -> Problem | None:
    """A tokenizer that puts EOS after plain text: to a decoder the text is over."""
    if rendering.ids[-1:] == rendering.ids_without_special[-1:]:
        return None
    token = spelled(rendering, rendering.ids[-1])
    return Problem(
        "generation_prompt",
        f"the tokenizer puts {token} after the text: to the model it is over before it begins",
        "Set add_eos_token to false in tokenizer_config.json, or take the token out of the post_processor in "
        "tokenizer.json",
    )


def _template_once(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    meant = settings.special_in_user_text == "special"
    for text in rendering.user_text:
        found = [] if meant else [token for token in rendering.special_in_user_text if token in text]
        if found or _already_rendered(rendering, text):
            holds = f"spells {', '.join(found)}" if found else "is itself a rendered chat"
            return Problem(
                "template_once",
                f"the template is applied to text that has been through one: the message {excerpt(text)} {holds}",
                "Pass the bare messages, or write the whole as plain text; where the token is meant, say "
                "`special_in_user_text: special`",
            )
    return None


def _already_rendered(rendering: Rendering, text: str) -> bool:
    """The template's own words before a user's text, and later those before the answer."""
    marks = [mark.strip() for mark in rendering.markup]
    if len(marks) < 2 or min(map(len, marks)) < SHORTEST_MARKUP:
        return False
    header, closing = marks
    return closing in text.partition(header)[2]


def _messages_kept(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    lost = [text for text in rendering.user_text if text.strip() not in rendering.text]
    if not lost:
        return None
    return Problem(
        "messages_kept",
        f"the template leaves out or changes the message {excerpt(lost[0])}",
        "Look at `text` of the rendering; many templates have no place for a system message: put it before the "
        "first user's text",
    )


def _continues(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    remedy = "Take a template that writes an assistant's message as it is, or prefill by hand in a plain text prompt"
    if rendering.continued is None:
        why = rendering.raised.get("continued", "")
        return Problem("continues", f"continue_final_message cannot be used with this template: {why}", remedy)
    if rendering.answer.strip() not in rendering.continued:
        sentence = f"the template leaves out the assistant's beginning {excerpt(rendering.answer)}"
        return Problem("continues", sentence, remedy)
    closing = after(rendering.continued, rendering.answer).strip()
    if not closing:
        return None
    sentence = f"continue_final_message does not continue: {quote(closing)} closes the assistant's turn"
    return Problem("continues", sentence, remedy)


def _round_trip(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    text, decoded = rendering.text, rendering.decoded
    if tight(rendering, text) == tight(rendering, decoded):
        return None
    return Problem(
        "round_trip",
        f"the ids do not say what the text says: {difference(text, decoded)}",
        "Tokenizer class and files do not belong together, or the vocabulary cannot spell it; if the tokenizer "
        "changes text by design (lower case, Unicode forms), say `round_trip: false`",
    )


def _special(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    parsed = rendering.special_in_user_text
    if settings.special_in_user_text == "plain":
        return special_from_user_text(rendering)
    spelled = [token for token in rendering.special_tokens if any(token in text for text in rendering.user_text)]
    broken = [token for token in spelled if token not in parsed]
    if not broken:
        return None
    return Problem(
        "special_in_user_text",
        f"{some(broken)} in the text is not read as the special token but in pieces",
        "Tokenise with split_special_tokens=False",
    )


def _same_on_any_date(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    other = rendering.on_another_date
    if other is None or other == rendering.text:
        return None
    return Problem(
        "same_on_any_date",
        f"the template writes the date, so outputs change from day to day: {difference(rendering.text, other)}",
        "Pass a fixed date_string to apply_chat_template if the template reads one, or take strftime_now out of it; "
        "`same_on_any_date: false` accepts it",
    )


def _system_added(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    return system_turn_added(rendering)


def _fits(rendering: Rendering, settings: PromptPipeline) -> Problem | None:
    embeddings, limit = rendering.embeddings, rendering.max_length
    if embeddings is not None and rendering.tokenizer_size > embeddings:
        beyond = [token for token, number in rendering.special_tokens.items() if number >= embeddings]
        which = f", among them {some(beyond)}" if beyond else ""
        return Problem(
            "fits",
            f"the tokenizer has {rendering.tokenizer_size} ids, the model only {embeddings} embeddings{which}",
            "Call model.resize_token_embeddings(len(tokenizer)) and save, or take the tokenizer of this model",
        )
    if limit is not None and len(rendering.ids) > limit:
        end = "the beginning" if rendering.truncation_side == "left" else "the end, where the answer is to begin"
        return Problem(
            "fits",
            f"the prompt has {len(rendering.ids)} tokens: truncated to model_max_length, {limit}, it loses {end}",
            "Shorten the prompt, or set model_max_length to what the model can really take",
        )
    return None


RULES: Mapping[str, Callable[[Rendering, PromptPipeline], Problem | None]] = {
    "bos": _bos,
    "generation_prompt": _generation_prompt,
    "template_once": _template_once,
    "messages_kept": _messages_kept,
    "continues": _continues,
    "round_trip": _round_trip,
    "special_in_user_text": _special,
    "same_on_any_date": _same_on_any_date,
    "system_added": _system_added,
    "fits": _fits,
}
OF_CHATS = ("template_once", "messages_kept", "continues", "same_on_any_date", "system_added")
