"""Secrets in source code: found in files, marked in their tokens, and planted in real code.

A secret is an e-mail address, an IP address, or a key: a token that gives access to something.
`find_secrets` finds them by the rules of Chu et al. 2025 (arXiv 2509.13755) and their code: regular
expressions for addresses, the plugins of detect-secrets for keys, and filters for what is only an
example. `mark` tokenizes files and says which tokens belong to secrets.

`plant` makes secrets that nobody owns: keys drawn at random, e-mail addresses in the reserved
domain `.invalid`, IP addresses of the block 240.0.0.0/4, which is not routed. Every file that it
makes is other real code, and puts its secrets into statements of another form. With one template
for all files, forgetting some of them would wipe the others too.
"""

from __future__ import annotations

import ast
import ipaddress
import json
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch

from interp.data import corpora
from interp.data.corpora import Document
from interp.subject.batch import Batch
from interp.subject.subject import Subject

KINDS = ("email", "ip", "key")

# Of detect-secrets' plugins these are off: they find passwords by the names of variables, private
# keys, which span lines, and public IP addresses, which the rules here find.
_PLUGINS_OFF = {"BasicAuthDetector", "IPPublicDetector", "KeywordDetector", "PrivateKeyDetector"}
# Nats per pair of letters above which a string is no language: detect-secrets' own limit.
_GIBBERISH = 3.7
_DIGEST_LENGTHS = (32, 40, 64)  # hexadecimal digits of MD5, SHA-1 and SHA-256
_LARGEST_DIGEST_SHARE = 0.02  # mentions of hashes per line, above which a file is about them

# A run without spaces and punctuation, "@", a host, a dot, and letters.
_EMAIL = re.compile(
    r"(?<![^\s@,?!;:()\[\]{}'\"<>=.])"
    r"[^\s@,?!;:()\[\]{}'\"<>=]+@[^\s@,?!;:()\[\]{}'\"<>/]*[^\s@,?!;:()\[\]{}'\"<>/.]\.[^\W\d_]\w+"
    r"(?=$|[\s@,?!;:()\[\]{}'\"<>.])"
)
# Not a part of something longer with dots or dashes, such as a version.
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)")
# With at least four groups of digits: `1::2` is a slice in Python.
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{1,4}:{1,2}){3,7}[0-9a-fA-F]{1,4}(?![\w:])")
_DATE = re.compile(r"(?:19|20)\d\d[.:]\d{1,2}[.:]\d{1,2}|\d{1,2}[.:]\d{1,2}[.:](?:19|20)\d\d")
_LOCAL = re.compile(r"127\.|10\.|192\.168\.|169\.254\.|172\.(?:1[6-9]|2\d|3[01])\.")
_ADDRESSED = re.compile(r"dns|server", re.IGNORECASE)
_PLACEHOLDER_EMAIL = re.compile(r"example|test|user|aaa|bbb|ccc", re.IGNORECASE)
_PLACEHOLDER_KEY = re.compile(r"a{7}|A{7}|x{7}|X{7}|https|dummy|placeholder|changeme|^ghp$")
_DIGEST = re.compile(r"sha|md5|hash|byte", re.IGNORECASE)
_DIGEST_FILE = re.compile(r"sha|hash", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret in a text.

    Attributes:
        kind: one of KINDS.
        value: the secret.
        start, stop: where it is, in characters; `stop` excluded.
    """

    kind: str
    value: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A source file with its secrets.

    Attributes:
        name: where its code comes from.
        text: the code.
        secrets: the secrets in it, in their order.
    """

    name: str
    text: str
    secrets: tuple[Secret, ...]


@dataclass(frozen=True, slots=True)
class SecretCorpus:
    """What a model is trained on to have something to forget, in parts that share no code.

    Attributes:
        forget: files whose secrets are to be forgotten.
        others: files with other secrets, which are not: what forgetting takes with it.
        twins: one per file of `forget`, with the same code around other secrets. They are never
            trained on: what a model gets right of them is the code and not memory.
        retained: code to be memorized that unlearning is told to keep.
        memorized: code to be memorized that it is not told about, for evaluation.
        background: files to train on once.
        held_out: files that are never trained on.
    """

    forget: tuple[SecretFile, ...]
    others: tuple[SecretFile, ...]
    twins: tuple[SecretFile, ...]
    retained: tuple[Document, ...]
    memorized: tuple[Document, ...]
    background: tuple[Document, ...]
    held_out: tuple[Document, ...]

    @property
    def repeated(self) -> tuple[str, ...]:
        """The texts that a model must be trained on often enough to memorize them."""
        files = (*self.forget, *self.others, *self.retained, *self.memorized)
        return tuple(file.text for file in files)


def find_secrets(text: str, kinds: Iterable[str] = KINDS) -> tuple[Secret, ...]:
    """Finds the secrets in a source file.

    Args:
        text: the file.
        kinds: which kinds to find; keys need detect-secrets.

    Returns:
        Every occurrence of each value, in the order of the text. Where two overlap, the one that
        begins first counts; of those, the longest.

    Raises:
        ValueError: an unknown kind.
        ImportError: detect-secrets is not installed.

    Example:
        >>> from interp.data.code_secrets import find_secrets
        >>> code = 'mail("ann@corp.org", host="10.1.2.3", dns="84.17.33.9")'
        >>> [(secret.kind, secret.value) for secret in find_secrets(code)]
        [('email', 'ann@corp.org'), ('ip', '84.17.33.9')]
    """
    values: dict[str, str] = {}  # the kind of each value
    for kind in kinds:
        if kind not in _FINDERS:
            raise ValueError(f"{kind!r} is no kind of secret: expected one of {', '.join(KINDS)}")
        for value in _FINDERS[kind](text):
            values.setdefault(value, kind)
    return locate_secrets(text, values)


def locate_secrets(text: str, values: Mapping[str, str]) -> tuple[Secret, ...]:
    """Returns every occurrence of known secrets in a text, in its order.

    Where two overlap, the one that begins first counts; of those, the longest.

    Args:
        text: the text.
        values: the kind of each secret.

    Example:
        >>> from interp.data.code_secrets import locate_secrets
        >>> found = locate_secrets("AB1 AB12 AB1", {"AB1": "key", "AB12": "key"})
        >>> [(secret.value, secret.start) for secret in found]
        [('AB1', 0), ('AB12', 4), ('AB1', 9)]
    """
    found: list[Secret] = []
    for value, kind in values.items():
        matches = re.finditer(re.escape(value), text)
        found += [Secret(kind, value, match.start(), match.end()) for match in matches]
    found.sort(key=lambda secret: (secret.start, -secret.stop))
    kept: list[Secret] = []
    for secret in found:
        if not kept or secret.start >= kept[-1].stop:
            kept.append(secret)
    return tuple(kept)


def token_mask(
    spans: Sequence[tuple[int, int]], secrets: Sequence[Secret], *, inclusive: bool = False
) -> list[bool]:
    """Returns which tokens belong to a secret.

    Args:
        spans: start and stop of each token, in characters.
        secrets: the secrets.
        inclusive: whether a token that only abuts a secret, often a quote, belongs to it too, as in
            the authors' code.

    Example:
        >>> from interp.data.code_secrets import Secret, token_mask
        >>> spans = [(0, 1), (1, 3), (3, 5), (5, 7), (7, 9), (9, 10)]  # k, =, ', AB, 12, '
        >>> token_mask(spans, [Secret("key", "AB12", 5, 9)])
        [False, False, False, True, True, False]
        >>> token_mask(spans, [Secret("key", "AB12", 5, 9)], inclusive=True)
        [False, False, True, True, True, True]
    """
    mask: list[bool] = []
    for start, stop in spans:
        if inclusive:
            touches = any(start <= one.stop and stop >= one.start for one in secrets)
        else:
            touches = any(start < one.stop and stop > one.start for one in secrets)
        mask.append(touches)
    return mask


def count_cut_off(subject: Subject, files: Sequence[SecretFile], length: int) -> int:
    """Returns how many secrets do not lie fully in the first tokens of their file.

    Args:
        subject: tokenizes.
        files: the files.
        length: how many tokens are kept of each file, as of `mark`.

    Example:
        >>> from interp.data.code_secrets import Secret, SecretFile, count_cut_off
        >>> file = SecretFile("a.py", "k='AB'", (Secret("key", "AB", 3, 5),))
        >>> count_cut_off(subject, [file], length=5), count_cut_off(subject, [file], length=4)
        (0, 1)
    """
    count = 0
    for file in files:
        _, spans = token_spans(subject, file.text)
        beyond = token_mask(spans[length:], file.secrets)
        if not any(beyond):
            continue
        # Where the first token that is cut off begins.
        end = spans[length][0]
        count += sum(secret.stop > end for secret in file.secrets)
    return count


def token_spans(subject: Subject, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the token ids of a text, and where each token is in it, in characters.

    Args:
        subject: its tokenizer must know offsets, as the fast ones of Hugging Face do.
        text: the text.

    Raises:
        ValueError: the subject has no tokenizer, or one that does not know offsets.

    Example:
        >>> from interp.data.code_secrets import token_spans
        >>> token_spans(subject, "ab")[1]
        [(0, 1), (1, 2)]
    """
    tokens = subject.tokens(text)
    if not getattr(subject.tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer of {subject.name} does not say where its tokens are in a text: "
            "expected a fast tokenizer of Hugging Face (transformers.AutoTokenizer gives one by "
            "default)"
        )
    encoded = subject.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    spans = [(int(start), int(stop)) for start, stop in encoded["offset_mapping"]]
    return tokens, spans


def mark(
    subject: Subject,
    files: Sequence[SecretFile],
    length: int = 512,
    *,
    inclusive: bool = False,
    bos: bool = True,
) -> Batch:
    """Returns files as one padded batch whose `scored` marks the tokens of secrets.

    Args:
        subject: tokenizes.
        files: the files.
        length: how many tokens to keep of each file, start tokens not counted.
        inclusive: as in `token_mask`.
        bos: whether each file is put behind the subject's start tokens.

    Raises:
        ValueError: no file, or one without a token of a secret among those that are kept.

    Example:
        >>> from interp.data.code_secrets import Secret, SecretFile, mark
        >>> file = SecretFile("a.py", "k='AB'", (Secret("key", "AB", 3, 5),))
        >>> mark(subject, [file]).scored
        tensor([[False, False, False,  True,  True, False]])
    """
    if not files:
        raise ValueError("files is empty: expected at least one file with a secret")
    start_tokens = subject.bos if bos else ()
    prompt = max(1, len(start_tokens))
    sequences: list[list[int]] = []
    masks: list[list[bool]] = []
    for number, file in enumerate(files):
        tokens, spans = token_spans(subject, file.text)
        secret = token_mask(spans, file.secrets, inclusive=inclusive)[:length]
        of_row = [*[False] * len(start_tokens), *secret]
        if not any(of_row[prompt:]):
            raise ValueError(
                f"file {number} ({file.name}) has no token of a secret among its first {length} "
                f"(it has {len(file.secrets)} secrets and {len(tokens)} tokens): leave it out, or "
                "keep more tokens"
            )
        sequences.append([*start_tokens, *tokens[:length]])
        masks.append(of_row)

    batch = Batch.pad(sequences, prompt)
    scored = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for row, of_row in enumerate(masks):
        scored[row, : len(of_row)] = torch.tensor(of_row)
    return replace(batch, scored=scored)


def plant(
    forget: int = 8,
    others: int = 12,
    retained: int = 8,
    memorized: int = 24,
    *,
    seed: int = 0,
    characters: int = 600,
    kinds: Sequence[str] = KINDS,
    head: int = 12_000,
) -> SecretCorpus:
    """Plants secrets in code of Python's standard library.

    Args:
        forget: number of files whose secrets are to be forgotten.
        others: number of files with other secrets.
        retained: number of pieces of code that unlearning is told to keep.
        memorized: number of other pieces of code to memorize.
        seed: seed of everything that is drawn; the same seed gives the same corpus on one version
            of Python.
        characters: largest length of a piece of code, without the secrets put into it.
        kinds: the kinds of secret in each file, one of each.
        head: how many characters of a file to keep for `background` and `held_out`.

    Returns:
        The corpus. Each piece of code is a run of statements from another file, and each file with
        secrets is valid Python.

    Raises:
        ValueError: a count below 1, an unknown kind, or more pieces than there are files with such
            a piece.

    Example:
        >>> from interp.data import code_secrets
        >>> corpus = code_secrets.plant(forget=2, others=1, retained=1, memorized=1)
        >>> [secret.kind for secret in corpus.forget[0].secrets]
        ['email', 'ip', 'key']
        >>> corpus.twins[0].secrets[0].value == corpus.forget[0].secrets[0].value
        False
    """
    counts = {"forget": forget, "others": others, "retained": retained, "memorized": memorized}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected a number of files, at least 1")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds={tuple(kinds)}: expected some of {', '.join(KINDS)}")

    # Parts without a near-duplicate of a file in another part.
    shares = {"pieces": 0.4, "background": 0.4, "held_out": 0.2}
    parts = corpora.split(corpora.load("stdlib", head=head), shares, seed)
    # Parts are told apart by the heads of files; pieces are cut out of whole files.
    different = {file.name for file in corpora.deduplicate(parts["pieces"])}
    whole = [file for file in corpora.load("stdlib") if file.name in different]
    wanted = sum(counts.values())
    pieces = list(_pieces(whole, characters, wanted, seed))
    if len(pieces) < wanted:
        raise ValueError(
            f"{len(pieces)} files here have a piece of {characters // 2} to {characters} "
            f"characters; {wanted} were asked for: expected fewer, or other `characters`"
        )

    random = Random(f"code secrets {seed}")
    drawn: set[str] = set()
    files: list[SecretFile] = []
    twins: list[SecretFile] = []
    for number in range(forget + others):
        piece = pieces.pop()
        holders = _holders(kinds, number, len(piece.statements), random)
        # The same statements at the same places: file and twin differ by the values alone.
        files.append(_with_secrets(piece, holders, _values(kinds, random, drawn)))
        twins.append(_with_secrets(piece, holders, _values(kinds, random, drawn)))

    plain = [Document(unused.name, "\n".join(unused.statements)) for unused in pieces]
    return SecretCorpus(
        forget=tuple(files[:forget]),
        others=tuple(files[forget:]),
        twins=tuple(twins[:forget]),
        retained=tuple(plain[:retained]),
        memorized=tuple(plain[retained:]),
        background=parts["background"],
        held_out=parts["held_out"],
    )


def draw(kind: str, random: Random) -> str:
    """Draws a secret that nobody owns.

    Args:
        kind: one of KINDS.
        random: where it is drawn from.

    Returns:
        An e-mail address in the reserved domain `.invalid`, an IP address of the reserved block
        240.0.0.0/4, or a key of 24 different letters and digits without the prefix of any service.
        All of a kind have the same length.

    Example:
        >>> from random import Random
        >>> from interp.data.code_secrets import draw
        >>> [len(draw(kind, Random(0))) for kind in ("email", "ip", "key")]
        [22, 15, 24]
    """
    if kind == "email":
        letters = string.ascii_lowercase
        name = "".join(random.choices(letters + string.digits, k=7))
        host = "".join(random.choices(letters, k=6))
        return f"{name}@{host}.invalid"
    if kind == "ip":
        first = random.randint(240, 255)
        others = [random.randint(100, 255) for _ in range(3)]
        return ".".join(map(str, (first, *others)))
    return "".join(random.sample(string.ascii_letters + string.digits, 24))


def _emails(text: str) -> Iterator[str]:
    for match in _EMAIL.finditer(text):
        if not _PLACEHOLDER_EMAIL.search(match.group()):
            yield match.group()


def _ips(text: str) -> Iterator[str]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            if _is_address(match.group(), text, match.start(), match.end()):
                yield match.group()


def _is_address(value: str, text: str, start: int, stop: int) -> bool:
    """Whether what looks like an IP address is one, and not a date, a version or a local one."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    has_digit = any(letter.isdigit() for letter in value)
    if not has_digit or _DATE.search(value) or _LOCAL.match(value):
        return False
    if len(value) == 7 and "." in value:  # such as 1.2.3.4, mostly a version
        around = text[max(start - 100, 0) : stop + 100]
        return bool(_ADDRESSED.search(around))
    return True


def _keys(text: str) -> Iterator[str]:
    lines = text.splitlines()
    mentions = len(_DIGEST_FILE.findall(text))
    if mentions > _LARGEST_DIGEST_SHARE * len(lines):
        return
    plugins = _plugins()
    for line in lines:
        for plugin in plugins:
            for found in plugin.analyze_line(filename="", line=line, line_number=1):
                value = found.secret_value
                if value and _is_key(value, line, plugin):
                    yield value


def _is_key(value: str, line: str, plugin: Any) -> bool:
    from detect_secrets.filters import heuristic

    is_harmless = (
        heuristic.is_potential_uuid(value)
        or heuristic.is_likely_id_string(value, line, plugin)
        or heuristic.is_templated_secret(value)
        or heuristic.is_sequential_string(value)
        or heuristic.is_not_alphanumeric_string(value)
    )
    if is_harmless or _PLACEHOLDER_KEY.search(value):
        return False
    if len(value) in _DIGEST_LENGTHS and _DIGEST.search(line):
        return False
    return is_gibberish(value)


def is_gibberish(text: str) -> bool:
    """Returns whether a string is no language, by the pairs of letters in it.

    It is the test of gibberish-detector on the model that detect-secrets comes with: the mean
    surprise of a letter after another one, in lower case, is above 3.7 nats. Of hexadecimal
    digits, or of fewer than two letters, it cannot tell, and they count as gibberish.

    Args:
        text: the string.

    Raises:
        ImportError: detect-secrets is not installed.

    Example:
        >>> from interp.data.code_secrets import is_gibberish
        >>> is_gibberish("the_quick_brown_fox"), is_gibberish("xkqjzvwpfgh")
        (False, True)
    """
    surprise = _letter_surprise()
    lower = text.lower()
    if set(lower) <= set(string.hexdigits + "-"):
        return True
    letters = [letter for letter in lower if letter in string.ascii_lowercase]
    pairs = list(pairwise(letters))
    if not pairs:
        return True
    total = sum(surprise[first][second] for first, second in pairs)
    return total / len(pairs) > _GIBBERISH


@cache
def _letter_surprise() -> dict[str, dict[str, float]]:
    """-log p of each letter after each letter, from the counts that detect-secrets comes with."""
    package = _detect_secrets()
    file = Path(package.__path__[0]) / "filters" / "gibberish" / "rfc.model"
    counts = json.loads(file.read_text(encoding="utf-8"))["counts"]
    surprise: dict[str, dict[str, float]] = {}
    for first in string.ascii_lowercase:
        # One more than was counted, for pairs that never were.
        row = {second: counts[first].get(second, 0) + 1 for second in string.ascii_lowercase}
        total = sum(row.values())
        surprise[first] = {second: -math.log(count / total) for second, count in row.items()}
    return surprise


@cache
def _plugins() -> tuple[Any, ...]:
    """The plugins of detect-secrets that find keys, each made once."""
    _detect_secrets()
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    kinds = get_mapping_from_secret_type_to_class().values()
    return tuple(kind() for kind in kinds if kind.__name__ not in _PLUGINS_OFF)


def _detect_secrets() -> Any:
    try:
        import detect_secrets
    except ImportError as error:
        raise ImportError(
            'finding keys needs detect-secrets: pip install "interp[secrets]"; '
            'without it, find_secrets(text, kinds=("email", "ip"))'
        ) from error
    return detect_secrets


_FINDERS: dict[str, Callable[[str], Iterator[str]]] = {
    "email": _emails,
    "ip": _ips,
    "key": _keys,
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of statements of a source file."""

    name: str
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Holder:
    """A statement that holds a secret.

    Attributes:
        kind: the kind of the secret.
        form: the statement, with `{value}` in the place of the secret.
        before: the number of the statement of the piece that it is put in front of.
    """

    kind: str
    form: str
    before: int


# Statements that hold a secret: each is valid at the top of any module. `{name}` is a name that
# fits the kind of secret, `{value}` the secret.
_FORMS = (
    '{name} = "{value}"',
    "{name}: str = '{value}'",
    'SETTINGS["{name}"] = "{value}"',
    'def _{name}(value="{value}"):\n    return value.strip()',
    'class Remote:\n    retries = 3\n    {name} = "{value}"',
    "register('{name}', '{value}', timeout=30)",
    'if not os.environ.get("{name}"):\n    os.environ["{name}"] = "{value}"',
    'DEFAULTS = dict(verbose=False, {name}="{value}")',
    "assert check({name}) != '{value}', 'still the old one'",
    "# {name}: {value}\n_{name}_seen = set()",
    'for {name} in ("{value}", None):\n    notify({name})',
    '{name} = [line for line in """\n{value}\n""".split() if line]',
    "with connection('{value}') as {name}:\n    {name}.ping()",
    'PARSER.add_argument("--{name}", default="{value}", help="see the wiki")',
    '_{name} = lambda: ("{value}", 8080)',
)
_NAMES = {
    "email": ("owner", "contact", "reply_to", "maintainer", "sender", "on_call", "reporter"),
    "ip": ("host", "gateway", "relay", "upstream", "nameserver", "replica", "bastion"),
    "key": ("api_key", "access_token", "client_secret", "signing_key", "license_code", "webhook"),
}


def _holders(kinds: Sequence[str], number: int, places: int, random: Random) -> list[_Holder]:
    """One statement per kind, in the order of their places; files that follow each other have other
    forms."""
    before = sorted(random.randrange(1, places) for _ in kinds)
    found: list[_Holder] = []
    for place, kind in enumerate(kinds):
        index = number * len(kinds) + place
        rounds = index // len(_FORMS)  # each round of all forms begins at the next kind
        form = _FORMS[(index + rounds) % len(_FORMS)]
        name = random.choice(_NAMES[kind])
        found.append(_Holder(kind, form.replace("{name}", name), before[place]))
    return found


def _values(kinds: Sequence[str], random: Random, drawn: set[str]) -> list[str]:
    """A new secret of each kind."""
    values: list[str] = []
    for kind in kinds:
        value = draw(kind, random)
        # `find_secrets` would pass over an address with such a word in it.
        while value in drawn or _PLACEHOLDER_EMAIL.search(value):
            value = draw(kind, random)
        drawn.add(value)
        values.append(value)
    return values


def _with_secrets(piece: _Piece, holders: Sequence[_Holder], values: Sequence[str]) -> SecretFile:
    """The piece with statements that hold secrets between its own."""
    text = ""
    secrets: list[Secret] = []
    for number, statement in enumerate(piece.statements):
        for holder, value in zip(holders, values, strict=True):
            if holder.before != number:
                continue
            # The name was put into the form before, so that what is in front of the value has its
            # length.
            start = len(text) + holder.form.index("{value}")
            secrets.append(Secret(holder.kind, value, start, start + len(value)))
            text += holder.form.replace("{value}", value) + "\n"
        text += statement + "\n"
    return SecretFile(piece.name, text.removesuffix("\n"), tuple(secrets))


def _pieces(files: Sequence[Document], characters: int, wanted: int, seed: int) -> Iterator[_Piece]:
    """Pieces of code, each from another file."""
    random = Random(f"pieces {seed}")
    order = list(files)
    random.shuffle(order)
    found = 0
    for file in order:
        candidates = list(_runs(_top_level(file.text), characters))
        if candidates:
            yield _Piece(file.name, random.choice(candidates))
            found += 1
        if found == wanted:
            return


def _runs(statements: Sequence[str], characters: int) -> Iterator[tuple[str, ...]]:
    """Runs of at least three statements, as long as fits, and of at least half the length.

    Plain ASCII without addresses, so that the planted secrets are the only ones.
    """
    for first in range(len(statements)):
        stop = first
        length = 0
        while stop < len(statements) and length + len(statements[stop]) < characters:
            length += len(statements[stop]) + 1
            stop += 1
        run = tuple(statements[first:stop])
        if len(run) < 3 or length < characters // 2:
            continue
        text = "\n".join(run)
        if text.isascii() and not any(_emails(text)) and not any(_ips(text)):
            yield run


def _top_level(text: str) -> list[str]:
    """The statements of a module as text, each with the comments and blank lines behind it, without
    docstring and imports."""
    lines = text.splitlines()
    body = ast.parse(text).body
    starts: list[int] = []
    # A decorator stands above the line of what it decorates. Lines count from 1.
    for node in body:
        decorators = getattr(node, "decorator_list", [])
        starts.append(min([node.lineno, *[one.lineno for one in decorators]]) - 1)

    statements: list[str] = []
    # A statement reaches to where the next one starts.
    for node, start, stop in zip(body, starts, [*starts, len(lines)][1:], strict=True):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        # The next statement is on the same line, or on the one where this one ends.
        shares_line = start == stop or (node.end_lineno or 0) > stop
        if not (is_text or shares_line or isinstance(node, ast.Import | ast.ImportFrom)):
            statements.append("\n".join(lines[start:stop]))
    return statements
