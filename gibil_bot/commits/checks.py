"""Decides whether commits from a machine may be published, and what of them.

The machine isn't trusted, and neither are the commits: a workflow ran a project's code, or an agent wrote them. They are
checked in a repository that we created, without hooks and without the caller's git configuration. Each rule has its own
message, and all problems are reported at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gibil_bot.commits import objects, paths
from gibil_bot.commits.collected import Collected
from gibil_bot.commits.objects import FOLDER, SUBMODULE, SYMLINK, Change, Commit, Malformed, TooMany
from gibil_bot.commits.recreate import recreate
from gibil_bot.commits.scanner import NotScanned
from gibil_bot.commits.secret_scan import Finding, KnownSecrets, Scanned, scan
from gibil_bot.errors import GibilError
from gibil_bot.git import GitError, TooExpensive
from gibil_bot.humanize import count
from gibil_bot.limits import MOST_GLOB
from gibil_bot.ssh.answers import printable

MOST_FILES = 100
MOST_BYTES = 4 * 1024 * 1024
MOST_COMMITS = 100
MOST_PROBLEMS = 10
MOST_MESSAGE_BYTES = 64 * 1024
"""Limit for the message of one commit."""

_MOST_LISTED = 20_000
"""How many changes are listed before those outside of the policy's paths are dropped."""
_MOST_SCANNED_BYTES = 8 * 1024 * 1024
"""Larger files of a push aren't scanned for what looks like a secret: it may have gigabytes, and a user reviews it."""
_MOST_LINKED = 200
"""How many targets of protected symbolic links are protected, too."""
_MOST_BEFORE_BYTES = 32 * 1024 * 1024
"""Former contents of one commit's files that are compared with new ones."""
_SCAN_S = 240.0
"""Limit for all scans of one check: there are texts that take a second for each megabyte."""
_PATH = 200
"""Maximum length of a path in a message."""
_NAMES_AND_TIMES = re.compile(rb"^(?:tree|parent) .*\n|(?<![0-9])[0-9]++ [+-][0-9]{4}$", re.MULTILINE)
"""What git itself writes into the header of a commit."""
_MODES = ("100644", "100755", SYMLINK)

# git-fsck's ids of messages. https://git-scm.com/docs/git-fsck#_fsck_messages
_MALFORMED = {
    "hasDotgit": ("GIT_FOLDER", "a folder of the commits has an entry named .git, or named so for some file system"),
    "hasDot": ("GIT_FOLDER", "a folder of the commits has an entry named ."),
    "hasDotdot": ("GIT_FOLDER", "a folder of the commits has an entry named .."),
    "emptyName": ("GIT_FOLDER", "a folder of the commits has an entry without a name"),
    "fullPathname": ("GIT_FOLDER", "a folder of the commits has an entry whose name contains a slash"),
    "duplicateEntries": ("MALFORMED", "a folder of the commits has two entries of the same name"),
    "treeNotSorted": ("MALFORMED", "a folder of the commits isn't sorted"),
    "badFilemode": ("MODE", "the commits contain a file mode that git doesn't write"),
    "zeroPaddedFilemode": ("MODE", "the commits contain a file mode that git doesn't write"),
    "gitmodulesUrl": ("SUBMODULE", "the commits contain a .gitmodules with a URL that could run a program"),
    "gitmodulesPath": ("SUBMODULE", "the commits contain a .gitmodules with a path that could be read as an option"),
    "gitmodulesUpdate": ("SUBMODULE", "the commits contain a .gitmodules that runs a program"),
    "gitmodulesSymlink": ("SUBMODULE", "the commits contain a .gitmodules that is a symbolic link"),
    "gitmodulesName": ("SUBMODULE", "the commits contain a .gitmodules with a name that leaves .git/modules"),
    "gitmodulesBlob": ("SUBMODULE", "the commits contain a .gitmodules that isn't a file"),
    "nulInCommit": ("MALFORMED", "the message of a commit contains a NUL byte"),
    "nulInHeader": ("MALFORMED", "the header of a commit contains a NUL byte"),
}


_NO_BASE = ("did not receive expected object", "bad object", "missing blob object", "missing tree", "unresolved deltas")
"""git's messages for missing objects, among them the parents of rewritten commits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A rule that the commits violate. `code` is stable; `message` is one line."""

    code: str
    message: str


class CommitRejected(GibilError):
    """The commits must not be published. The message has all `problems`, the first MOST_PROBLEMS of them."""

    code = "COMMIT_REJECTED"

    def __init__(self, problems: Sequence[Problem], *, total: int | None = None) -> None:
        self.problems = tuple(problems[:MOST_PROBLEMS])
        self.total = len(problems) if total is None else total
        texts = [problem.message for problem in self.problems]
        if self.total > len(texts):
            texts.append(f"and {count(self.total - len(texts), 'more problem')}")
        super().__init__("; ".join(texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPolicy:
    """What commits may contain.

    `paths`: globs of the files that may change (see paths.is_selected), empty for all; other changes are dropped and reported,
    or rejected if `strict`. `protected`: globs of files that may not change. `linear`: the commits are created again one by
    one, so each must descend from the base; False for a push of the commits themselves, which may merge other branches.
    """

    most_files: int = MOST_FILES
    most_bytes: int = MOST_BYTES
    most_commits: int = MOST_COMMITS
    protected: tuple[str, ...] = paths.PROTECTED
    paths: tuple[str, ...] = ()
    strict: bool = False
    linear: bool = True
    git_settings: bool = False
    """Allow changes of submodules, .gitattributes, .gitmodules and .lfsconfig."""
    secrets: KnownSecrets | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCommit:
    """`changes` are relative to the first of `parents`, which are the base or earlier commits of the same list.

    `sha`: in our repository; another one than on the machine if changes of it or of its parents were dropped.
    """

    sha: str
    parents: tuple[str, ...]
    message: str
    changes: tuple[Change, ...]
    """Files and links only, no folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Commits that may be published, parents first; none if all changes were dropped."""

    base: str
    head: str
    """In our repository, without dropped changes; the base if all were dropped."""
    collected: str
    """The head on the machine."""
    commits: tuple[CheckedCommit, ...]
    files: tuple[str, ...]
    """Every path that changes, sorted; for a moved file both."""
    bytes: int
    """Size of the files' new content."""
    dropped: tuple[str, ...]
    """Changed paths outside of the policy's, sorted."""
    subjects: tuple[str, ...]
    """First lines of the messages of all new commits, newest first."""
    unscanned: tuple[str, ...] = ()
    """Files that are too large to be scanned for what looks like a secret; only with a policy that isn't `linear`."""


async def check(repository: Path, collected: Collected, policy: CommitPolicy, *, name: str = "the machine") -> Checked:
    """Unpack and check collected commits in `repository`, our bare repository, which has the base commit.

    `name`: the machine, for messages. Raises CommitRejected with all problems; GitError if they can't be read.
    """
    try:
        await objects.unpack(repository, collected.bundle, base=collected.base, head=collected.head, name=name)
        return await _check(repository, collected, policy)
    except Malformed as error:
        code, message = _MALFORMED.get(error.rule, ("MALFORMED", f"the commits contain an invalid object ({error.rule})"))
        raise CommitRejected([Problem(code=code, message=message)]) from error
    except (TooMany, TooExpensive) as error:
        raise CommitRejected([Problem(code=TooMany.code, message=error.message)]) from error
    except GitError as error:
        if not any(words in error.stderr for words in _NO_BASE):
            raise
        message = f"the commits of {name} don't descend from {collected.base[:7]}, or some of their objects are missing"
        raise CommitRejected([Problem(code="HISTORY", message=message)]) from error


async def _check(repository: Path, collected: Collected, policy: CommitPolicy) -> Checked:
    problems = _Problems()
    base, head = collected.base, collected.head
    found = await objects.commits(
        repository, head, base, most=policy.most_commits,
        too_many=f"there are more than {policy.most_commits:,} new commits: push them in parts, or from another clone",
    )  # fmt: skip
    if policy.linear:
        _check_history(found, base, problems)
        pairs = [(commit.parents[0], commit.sha) for commit in found]
    else:
        pairs = [(base, head)]
    too_many = (
        f"the commits change more than {policy.most_files:,} files: are installed or built files committed? "
        "The intended changes can be pushed from another clone"
    )
    most_listed = max(policy.most_files, _MOST_LISTED)
    differences = await objects.changes(repository, pairs, most=most_listed, too_many=too_many)
    # In threads: names are the machine's, and thousands of long ones take seconds.
    kept, dropped = await asyncio.to_thread(_select, pairs, differences, policy)
    files = sorted({change.path for _, changes in kept for change in changes})
    if policy.strict and dropped:
        problems.add(
            "OUTSIDE_PATHS",
            f"the commits change {printable(dropped[0], _PATH)}"
            + (f" and {count(len(dropped) - 1, 'other file')}" if len(dropped) > 1 else "")
            + " outside of the workflow's `paths`, and `strict` is set",
        )
    if len(files) > policy.most_files:
        raise TooMany(too_many)
    await asyncio.to_thread(_check_replaced, files, dropped, problems)
    linked = await _linked(repository, base, policy.protected) if files or not policy.linear else {}
    await asyncio.to_thread(_check_paths, [change for _, each in kept for change in each], policy, problems, linked)
    scanning = _Scanning(policy.secrets, problems, most_bytes=None if policy.linear else _MOST_SCANNED_BYTES)
    total = await _check_contents(repository, kept, policy, problems, scanning)
    if not policy.linear:
        await _check_each(repository, found, head, base, most_listed, policy, problems, scanning, linked)
    await _check_names(repository, base, found[-1] if found else None, differences, set(files), set(dropped), problems)
    long = {commit.sha for commit in found if len(commit.message.encode()) > MOST_MESSAGE_BYTES}
    for sha in long:
        problems.add("MESSAGE", f"the message of commit {sha[:7]} is longer than {MOST_MESSAGE_BYTES // 1024} KiB")
    await _scan_headers(repository, [commit for commit in found if commit.sha not in long], scanning)
    problems.raise_any()
    commits = _commits(found, kept, differences, base) if policy.linear else ()
    if policy.linear and dropped:
        commits = await _without_dropped(repository, commits, dropped)
    return Checked(
        base=base,
        head=commits[-1].sha if commits else base if policy.linear else head,
        collected=head,
        commits=commits,
        files=tuple(files),
        bytes=total,
        dropped=tuple(dropped),
        subjects=tuple(commit.subject for commit in reversed(found)),
        unscanned=tuple(sorted(scanning.unscanned)),
    )


class _Problems:
    """Collects the first MOST_PROBLEMS problems; no message twice."""

    def __init__(self) -> None:
        self._found: dict[str, Problem] = {}
        self._total = 0

    def add(self, code: str, message: str) -> None:
        if message in self._found:
            return
        self._total += 1
        if len(self._found) < MOST_PROBLEMS:
            self._found[message] = Problem(code=code, message=message)

    def raise_any(self) -> None:
        if self._found:
            raise CommitRejected(list(self._found.values()), total=self._total)


def _check_history(commits: Sequence[Commit], base: str, problems: _Problems) -> None:
    """Each commit's parents must be the base or other new commits. Raises CommitRejected otherwise."""
    new = {base, *(commit.sha for commit in commits)}
    for commit in commits:
        if not commit.parents:
            problems.add("HISTORY", f"commit {commit.sha[:7]} has no parent: it doesn't descend from {base[:7]}")
        elif any(parent not in new for parent in commit.parents):
            problems.add(
                "HISTORY",
                f"commit {commit.sha[:7]} doesn't descend from {base[:7]} alone: history that was rewritten, "
                "or another branch that was merged, can't be pushed",
            )
    problems.raise_any()


def _select(
    pairs: Sequence[tuple[str, str]],
    differences: Mapping[tuple[str, str], Sequence[Change]],
    policy: CommitPolicy,
) -> tuple[list[tuple[str, tuple[Change, ...]]], list[str]]:
    """Return the changes of each commit that remain, and the paths of those that are dropped."""
    dropped: set[str] = set()
    kept = []
    for pair in pairs:
        remaining = []
        for change in differences[pair]:
            if FOLDER in (change.mode, change.old_mode):
                continue
            if not paths.is_selected(change.path, policy.paths):
                dropped.add(change.path)
            else:
                remaining.append(change)
        kept.append((pair[1], tuple(remaining)))
    return kept, sorted(dropped)


def _check_replaced(files: Sequence[str], dropped: Sequence[str], problems: _Problems) -> None:
    """Reject a file in place of a folder that has files outside of the policy's paths.

    Their deletion is dropped, and yet the file could only be created by deleting them. See `_without_dropped` for the reverse.
    """
    kept = set(files)
    for new, old in [(parent, path) for path in dropped for parent in paths.parents_of(path) if parent in kept]:
        shown, replaced = printable(new, _PATH), printable(old, _PATH)
        problems.add("OUTSIDE_PATHS", f"{shown} would replace {replaced}, which is outside of the workflow's `paths`")


def _check_paths(changes: Iterable[Change], policy: CommitPolicy, problems: _Problems, linked: Mapping[str, str]) -> None:
    for change in changes:
        path, shown = change.path, printable(change.path, _PATH)
        if paths.is_git_folder(path):
            problems.add("GIT_FOLDER", f"'{shown}' is a path in a .git folder, or is so for some file system")
        elif SUBMODULE in (change.mode, change.old_mode) and not policy.git_settings:
            problems.add("SUBMODULE", f"{shown} is a submodule: submodules can't be added, changed or removed")
        elif paths.is_git_settings(path) and not policy.git_settings:
            problems.add("GIT_SETTINGS", f"{shown} has settings of git, which can't be changed from a machine")
        elif policy.protected and paths.is_protected(path, policy.protected):
            problems.add("PROTECTED", f"{shown} is protected: it can't be changed from a machine")
        elif linked and paths.is_protected(path, tuple(linked)):
            link = next(link for target, link in linked.items() if paths.is_protected(path, (target,)))
            problems.add("PROTECTED", f"{shown} is protected, because {printable(link, _PATH)} is a symbolic link to it")
        elif not _is_utf8(path):
            problems.add("NAME", f"the name of '{shown}' isn't UTF-8")
        elif paths.has_control_characters(path):
            problems.add("NAME", f"the name of '{shown}' has control characters")
        elif change.mode is not None and change.mode not in (*_MODES, SUBMODULE):
            problems.add("MODE", f"{shown} has the mode {change.mode}, which isn't that of a file or a symbolic link")


async def _linked(repository: Path, base: str, protected: Sequence[str]) -> dict[str, str]:
    """Return what protected symbolic links of the base lead to, each with its link: its change is one of the protected path."""
    if not protected:
        return {}

    def protected_of(paths_of_links: Iterable[str]) -> list[str]:
        return [path for path in paths_of_links if paths.is_protected(path, protected)]

    links = await objects.links(repository, base)
    found: dict[str, str] = {}
    waiting = [(path, path) for path in await asyncio.to_thread(protected_of, links)]
    while waiting and len(found) < _MOST_LINKED:
        path, link = waiting.pop()
        target = links[path]
        if target not in found and len(target) <= MOST_GLOB:
            found[target] = link
            # A link may lead to another one, also as a folder of its target.
            waiting += [(each, link) for each in (target, *paths.parents_of(target)) if each in links]
    return found


async def _check_contents(
    repository: Path,
    kept: Sequence[tuple[str, Sequence[Change]]],
    policy: CommitPolicy,
    problems: _Problems,
    scanning: _Scanning,
) -> int:
    """Check sizes, targets of links, and secrets. Return the size of all new content, each object once."""
    new = {change.new: change for _, changes in kept for change in changes if change.new and change.mode != SUBMODULE}
    sizes = await objects.sizes(repository, [sha for sha in new if sha])
    total = sum(sizes.values())
    if total > policy.most_bytes:
        largest = new[max(sizes, key=lambda sha: sizes[sha])]
        problems.add(
            "TOO_LARGE",
            f"the changed files are larger than {_size(policy.most_bytes)}; "
            f"the largest is {printable(largest.path, _PATH)} with {_size(sizes[largest.new or ''])}",
        )
        return total
    for sha, changes in kept:
        links = [(change, sizes.get(change.new or "", 0)) for change in changes if change.mode == SYMLINK]
        short = []
        for change, size in links:
            if size > objects.PATH_BYTES:
                problems.add("SYMLINK", f"{printable(change.path, _PATH)} is a symbolic link with an overlong target")
            else:
                short.append((change, size))
        targets = {name: data async for name, data in objects.contents(repository, [(c.new or "", size) for c, size in short])}
        for change, _ in short:
            target = targets[change.new or ""].decode("utf-8", "surrogateescape")
            if not paths.is_within_tree(change.path, target):
                problems.add(
                    "SYMLINK",
                    f"{printable(change.path, _PATH)} is a symbolic link to '{printable(target, _PATH)}', "
                    "which isn't a plain path inside of the repository",
                )
        await _scan_commit(repository, sha, changes, sizes, scanning)
    return total


async def _scan_commit(
    repository: Path, sha: str, changes: Sequence[Change], sizes: Mapping[str, int], scanning: _Scanning
) -> None:
    """Scan the content and the names of changed files. A secret that the commit's parent has in one of them isn't new."""
    by_object = {change.new: change for change in changes if change.new in sizes and change.new not in scanning.clean}
    given = [(new or "", sizes[new or ""]) for new in by_object if scanning.reads(by_object[new].path, sizes[new or ""])]
    before: list[bytes] | None = None
    async for new, data in objects.contents(repository, given):
        where = printable(by_object[new].path, _PATH)
        found = await scanning.scan(where, data)
        if found.is_clean:
            scanning.clean.add(new)
            continue
        if before is None:
            before = await _before(repository, changes)
        scanning.add(where, data, await found.new(before))
    names = "\n".join(change.path for change in changes if change.old is None)
    await scanning.check(f"the name of a file in commit {sha[:7]}", names.encode("utf-8", "surrogateescape"))


async def _before(repository: Path, changes: Sequence[Change]) -> list[bytes]:
    """Return the former contents of changed files, up to a limit."""
    sizes = await objects.sizes(repository, sorted({c.old for c in changes if c.old and c.old_mode != SUBMODULE}))
    total = 0
    readable = []
    for old, size in sizes.items():
        total += size
        if total <= _MOST_BEFORE_BYTES:
            readable.append((old, size))
    return [data async for _, data in objects.contents(repository, readable)]


class _Scanning:
    """Scans the texts of one check for secrets: above `most_bytes` only for known ones.

    `clean`: objects that have none, which aren't scanned again. `unscanned`: paths of files above `most_bytes`.
    """

    def __init__(self, known: KnownSecrets | None, problems: _Problems, *, most_bytes: int | None) -> None:
        self.clean: set[str] = set()
        self.unscanned: set[str] = set()
        self._known = known
        self._problems = problems
        self._most_bytes = most_bytes
        self._spent_s = 0.0

    def reads(self, path: str, size: int) -> bool:
        """Return whether a file's content is needed; note it if not all of the scan is for it."""
        if self._is_small(size):
            return True
        self.unscanned.add(path)
        return self._known is not None

    def _is_small(self, size: int) -> bool:
        return self._most_bytes is None or size <= self._most_bytes

    async def scan(self, where: str, data: bytes) -> Scanned:
        """Raises TooMany if all scans together take too long; CommitRejected if the scanner fails at `data`."""
        try:
            found = await scan(data, known=self._known, only_known=not self._is_small(len(data)))
        except NotScanned as error:
            self._problems.add("NOT_SCANNED", f"{where} can't be searched for secrets: {error.message}")
            self._problems.raise_any()
            raise
        self._spent_s += found.seconds
        if self._spent_s > _SCAN_S:
            raise TooMany(f"looking for secrets in the commits takes more than {_SCAN_S:g} s")
        return found

    async def check(self, where: str, data: bytes) -> None:
        """Add a problem for each secret in `data`."""
        self.add(where, data, await (await self.scan(where, data)).new())

    def add(self, where: str, data: bytes, findings: Sequence[Finding]) -> None:
        for finding in findings:
            line = f", line {finding.line}" if b"\n" in data.rstrip(b"\n") else ""
            self._problems.add("SECRET", f"{where}{line} contains {finding.what}")


async def _check_each(
    repository: Path,
    commits: Sequence[Commit],
    head: str,
    base: str,
    most: int,
    policy: CommitPolicy,
    problems: _Problems,
    scanning: _Scanning,
    linked: Mapping[str, str],
) -> None:
    """Check the paths and scan the contents of each commit that the server doesn't have: a later one may have undone it."""
    new = await objects.not_on_branches(repository, head, base)
    added = [commit for commit in commits if commit.sha in new]
    if len(added) <= 1 and len(commits) == len(added):
        return  # the difference as a whole was checked
    too_many = f"the commits change files more than {most:,} times: push them in parts, or from another clone"
    pairs = [("".join(commit.parents), commit.sha) for commit in added if len(commit.parents) <= 1]
    by_commit = {
        sha: each for (_, sha), each in (await objects.changes(repository, pairs, most=most, too_many=too_many)).items()
    }
    merges = [commit.sha for commit in added if len(commit.parents) > 1]
    by_commit |= await objects.changes_of_merges(repository, merges, most=most, too_many=too_many)
    for sha, changes in by_commit.items():
        files = [change for change in changes if FOLDER not in (change.mode, change.old_mode)]
        await asyncio.to_thread(_check_paths, files, policy, problems, linked)
        names = [change.new for change in files if change.new and change.mode != SUBMODULE]
        await _scan_commit(repository, sha, files, await objects.sizes(repository, sorted(names)), scanning)


async def _scan_headers(repository: Path, commits: Sequence[Commit], scanning: _Scanning) -> None:
    """Scan the commits themselves: authors and unknown headers become public, too, and messages in other encodings."""
    sizes = await objects.sizes(repository, [commit.sha for commit in commits])
    messages = {commit.sha: commit.message.encode() for commit in commits}
    async for sha, data in objects.contents(repository, list(sizes.items())):
        header, _, message = data.partition(b"\n\n")
        await scanning.check(f"the header of commit {sha[:7]}", _NAMES_AND_TIMES.sub(b"", header))
        await scanning.check(f"the message of commit {sha[:7]}", messages[sha])
        if messages[sha].strip() != message.strip():
            await scanning.check(f"the stored message of commit {sha[:7]}", message)


async def _check_names(
    repository: Path,
    base: str,
    head: Commit | None,
    differences: Mapping[tuple[str, str], Sequence[Change]],
    files: set[str],
    dropped: set[str],
    problems: _Problems,
) -> None:
    """Reject new names that are the same as another name of their folder to a file system that ignores case."""
    if head is None:
        return
    pair = (base, head.sha)
    listed = differences.get(pair)
    if listed is None:  # of several commits
        listed = (await objects.changes(repository, [pair], most=_MOST_LISTED, too_many="too many files changed"))[pair]
    kept = files.union(*map(paths.parents_of, files))
    # A file whose deletion is dropped remains.
    remaining = {change.path for change in listed if change.new is None and change.path in dropped}
    gone = dropped - remaining
    by_folder: dict[str, set[str]] = {}
    for path in remaining.union(*map(paths.parents_of, remaining)):
        folder, slash, name = path.rpartition("/")
        by_folder.setdefault(folder + slash, set()).add(name)
    added = {change.path for change in listed if change.old is None and change.path in kept}
    folders = {change.path: change.new for change in listed if change.mode == FOLDER and change.new and change.path in kept}
    by_tree: dict[str, list[str]] = {head.tree: [""]}
    for path, tree in folders.items():
        by_tree.setdefault(tree, []).append(path + "/")
    sizes = await objects.sizes(repository, list(by_tree))
    async for tree, data in objects.contents(repository, list(sizes.items())):
        in_tree = objects.names_in_tree(data)
        groups = paths.collisions(in_tree)
        for prefix in by_tree[tree]:
            more = by_folder.get(prefix)
            for group in paths.collisions({*in_tree, *more}) if more else groups:
                names = [prefix + name for name in group if prefix + name not in gone]
                if len(names) > 1 and added.intersection(names):
                    shown = " and ".join(printable(name, _PATH) for name in names[:3])
                    problems.add("SAME_NAME", f"{shown} are the same name on file systems that ignore case")


def _commits(
    commits: Sequence[Commit],
    kept: Sequence[tuple[str, tuple[Change, ...]]],
    differences: Mapping[tuple[str, str], Sequence[Change]],
    base: str,
) -> tuple[CheckedCommit, ...]:
    """Return the commits without those whose changes were all dropped; their children descend from their parents instead."""
    replaced = {base: base}
    result = []
    for commit, (_, changes) in zip(commits, kept, strict=True):
        parents = tuple(dict.fromkeys(replaced[parent] for parent in commit.parents))
        if not changes and differences[commit.parents[0], commit.sha]:
            replaced[commit.sha] = parents[0]
            continue
        replaced[commit.sha] = commit.sha
        result.append(CheckedCommit(sha=commit.sha, parents=parents, message=commit.message, changes=changes))
    return tuple(result)


async def _without_dropped(
    repository: Path, commits: Sequence[CheckedCommit], dropped: Sequence[str]
) -> tuple[CheckedCommit, ...]:
    """Create the commits again with their remaining changes only. Raises CommitRejected, GitError."""
    created: dict[str, str] = {}
    result = []
    for commit in commits:
        parents = tuple(created.get(parent, parent) for parent in commit.parents)
        needed = sorted({folder for change in commit.changes for folder in paths.parents_of(change.path)}.intersection(dropped))
        if needed:
            what = printable(needed[0], _PATH)
            message = f"the file {what} becomes a folder, and `paths` includes only files in it: include both, or none"
            raise CommitRejected([Problem(code="OUTSIDE_PATHS", message=message)])
        created[commit.sha] = await recreate(repository, commit.message, parents, commit.changes)
        result.append(replace(commit, sha=created[commit.sha], parents=parents))
    return tuple(result)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(number: int) -> str:
    if number < 1024**2:
        return f"{number / 1024:.0f} KiB"
    return f"{number / 1024**2:.1f} MiB".replace(".0 MiB", " MiB")
