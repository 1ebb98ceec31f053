"""A chat as its model reads it: cleaned of what differs between files, and rendered with the tokenizer's template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sani_dist.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rendered(chat: list[Any], where: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The text of a chat. Raises `InputError` that names the message and what is wrong with it, never what it says."""
    messages = [_message(message, f"{where}, message {i}") for i, message in enumerate(chat, 1)]
    if not messages:
        return ""
    if tokenizer is None or not tokenizer.chat_template:
        raise InputError(f"{where} is a chat, but the model's tokenizer has no chat template")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template may refuse a role or an order, in words that quote the message
        raise InputError(f"{where}: the chat template cannot render it ({type(error).__name__})") from None


def _message(message: Any, where: str) -> dict[str, Any]:
    """{role, content, ...} with text as content, and without the keys that a table adds as nulls, which templates take for given."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"{where}: expected an object {{role, content}}")
    given = {key: value for key, value in message.items() if value is not None}
    if given.get("tool_calls"):
        given["tool_calls"] = _tool_calls(given["tool_calls"], where)
    return {**given, "content": _content(message.get("content"), where)}


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"{where}: its content is neither text, nor null, nor a list of parts")
    # On lines of their own: the end of one part and the start of the next are not one word.
    return "\n".join(_part(part, f"{where}, part {i}") for i, part in enumerate(content, 1))


def _part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise InputError(f"{where} is no text; a language model cannot have learnt it: take it out")
    return text


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InputError(f"{where}: `tool_calls` must be a list of objects")
    return [_tool_call({key: value for key, value in call.items() if value is not None}) for call in calls]


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """With arguments as an object where they are the JSON of one: templates write them as JSON, which would quote them twice."""
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call
