"""Which words a corpus also uses as ordinary ones: it writes them without a capital."""

from __future__ import annotations

import re
from typing import Any

from sani_dist.corpus.span import Document

# A whole word of the text: letters alone, whatever punctuation is around. Not the john of john@example.org or user-john.
_WORD = re.compile(r"(?<!\S)[(\[\"'\u201c\u2018]*([^\W\d_]{2,})[.,;:!?)\]\"'\u201d\u2019]*(?!\S)")
# In a chat without capitals, names have none either.
_WORDS_PER_CAPITAL = 50
# A slip in one document is no usage.
_DOCUMENTS = 2


class OrdinaryWords:
    """Words in lower case in at least two documents that use capitals. Memory grows with the vocabulary, not with the text."""

    def __init__(self) -> None:
        self._documents: dict[str, int] = {}

    def add(self, document: Document) -> None:
        """Count the words of a document, each once."""
        words = document.text.split()
        if sum(word[0].isupper() for word in words) * _WORDS_PER_CAPITAL < len(words):
            return
        for word in {word for word in _WORD.findall(document.text) if word.islower()}:
            self._documents[word] = min(_DOCUMENTS, self._documents.get(word, 0) + 1)

    def __getstate__(self) -> dict[str, Any]:
        """What is asked for in another process: the ordinary words."""
        return {"_documents": dict.fromkeys((word for word in self._documents if word in self), _DOCUMENTS)}

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self._documents.get(word, 0) >= _DOCUMENTS
