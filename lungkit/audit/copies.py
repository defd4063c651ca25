"""Find images that are copies of one another: turned, flipped, rescaled, cropped, re-compressed.

An augmented copy of a training image in the test split is a leak. `describe` makes a small
signature of one image (its strongest corners with their SIFT descriptors, and a thumbnail);
`link` groups the images of many signatures without comparing all with all:

1. an index proposes for each image the few with which it shares most features. Features hash to
   the signs of random projections (Charikar 2002), to as many bits as keep lists equally long at
   any number of images, and are asked for with their least sure bits turned as well (Lv et al.
   2007). Found ones count if they are close (Hamming embedding) and agree on the angle between
   the two images (weak geometric consistency; both Jegou et al. 2008, doi
   10.1007/978-3-540-88682-2_24). A mirrored image's descriptors are a permutation of the
   original's, so that flips cost one query more;
2. a proposed pair is registered: matched features vote for a similarity, refined to an affine map
   (copies made square from oblong originals are stretched too). It is a pair of copies if enough
   features agree and the thumbnails correlate where they overlap;
3. groups are the connected components of these pairs; large ones are asked about again among
   themselves, for many copies of one image are candidates of nothing else.

SIFT: Lowe 2004, IJCV 60:91; square roots of it: Arandjelovic & Zisserman 2012. Thresholds are
ours, set on half of the source tiles of LC25000 but for LEAST_OVERLAP and the index, whose faults
were found on all of it: no part of that set is untouched (benchmarks/sibling_groups.py).
An image with fewer than LEAST_INLIERS features (mostly air, out of focus) is linked to what has the
same thumbnail, turned by right angles or flipped; a blank one is never linked. Fields that overlap
by less than LEAST_OVERLAP (neighbours on a slide) are no copies; where fields overlap by more they
leak as copies do, and are linked.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lungkit.audit.candidates import CANDIDATES, propose, propose_between
from lungkit.audit.registration import (
    FLAT,
    LEAST_AGREEMENT,
    LEAST_INLIERS,
    Registration,
    register_pair,
)
from lungkit.audit.signature import Signature
from lungkit.audit.survey import Original
from lungkit.run import faults
from lungkit.run.workers import in_this_process

CROWD = CANDIDATES // 2  # members of a group that leave few candidates for others
REGISTERED = 4          # ours: of the candidates; true copies have the most votes by far
ASKED_AGAIN = 4         # ours: of a crowd
ENOUGH_FEATURES = 3 * LEAST_INLIERS  # a copy of an image of fewer than LEAST_INLIERS has fewer
PLAIN_AGREEMENT = 0.98  # ours: correlation of thumbnails
PLAIN_BLOCK = 256       # bounds memory


# ------------------------------------------------------------------ groups

def find_pairs(signatures: list[Signature], mapped: Callable = in_this_process, *,
               joined: Callable[[int, int], bool] = lambda i, j: False,
               ) -> Iterator[tuple[int, int, Registration]]:
    """Yield registered pairs of copies (i, j, how well), i < j; not every pair of a group.

    mapped: what `workers.mapper` yields. joined: pairs for which it is true need no registration.
    """
    # in an order of their content, so that nothing depends on the order given
    content = sorted(range(len(signatures)), key=lambda i: _digest(signatures[i]))
    waiting: deque[tuple[int, int]] = deque()  # pairs whose registration has not come back

    def items() -> Iterable[tuple]:
        for a, b in propose([signatures[i] for i in content]):
            i, j = content[a], content[b]
            if not joined(i, j):
                waiting.append((min(i, j), max(i, j)))
                yield signatures[i], signatures[j]

    # far ahead: while this process asks the index about a block, the others have enough to do
    for result in mapped(register_pair, items(), chunk=64, ahead=32):
        faults.check_stop()
        pair = waiting.popleft()
        if result.are_copies:
            yield *pair, result


def registered_among(asked: list[Signature], others: list[Signature],
                     mapped: Callable = in_this_process, *,
                     least_agreement: float = LEAST_AGREEMENT
                     ) -> Iterator[tuple[int, int, float]]:
    """Yield (image asked about, image of `others`, agreement) of copies found.

    Only the candidates that share most features are registered: it is no grouping, one is enough.
    least_agreement: a higher one than LEAST_AGREEMENT, for images that are alike by nature.
    """
    pairs = [(i, j) for i, j in propose_between(asked, others, most=REGISTERED)]
    for (i, j), result in zip(pairs, mapped(
            register_pair, ((asked[i], others[j]) for i, j in pairs), chunk=64), strict=True):
        faults.check_stop()
        if result.are_copies and result.agreement >= least_agreement:
            yield i, j, result.agreement
    for i, j in plain_copies([*asked, *others]):
        if i < len(asked) <= j:
            yield i, j - len(asked), PLAIN_AGREEMENT


def link(signatures: list[Signature], mapped: Callable = in_this_process) -> list[int]:
    """Group number of each image: the smallest index of the copies it belongs with.

    Images with one signature are looked for once. Many copies of one image fill one another's
    CANDIDATES: so, in turn, some of every large group are asked about among these alone, until
    nothing joins any more.
    """
    from scipy.cluster.hierarchy import DisjointSet

    groups = DisjointSet(range(len(signatures)))
    first: dict[bytes, int] = {}
    for i, signature in enumerate(signatures):
        if len(signature.codes) >= LEAST_INLIERS:
            groups.merge(first.setdefault(_digest(signature), i), i)
    asked = different = [i for _, i in sorted(first.items())]
    while len(asked) > 1:
        before = len({groups[i] for i in asked})
        for i, j, _ in find_pairs([signatures[i] for i in asked], mapped, joined=lambda i, j,
                                  asked=asked: groups.connected(asked[i], asked[j])):
            groups.merge(asked[i], asked[j])
        if len({groups[i] for i in asked}) == before:
            break
        members: dict[int, list[int]] = {}
        for i in different:
            members.setdefault(groups[i], []).append(i)
        crowds = [found for found in members.values() if len(found) > CROWD]
        asked = [i for found in crowds for i in found[:ASKED_AGAIN]] if len(crowds) > 1 else []
    for i, j in plain_copies(signatures):
        groups.merge(i, j)
    first_of = {i: min(group) for group in groups.subsets() for i in group}
    return [first_of[i] for i in range(len(signatures))]


def find_copies(originals: list[Original], mapped: Callable = in_this_process
                ) -> list[tuple[str, str]]:
    """Pairs of names of originals that are copies: each with the first of its group."""
    first: dict[int, str] = {}
    return [(first[group], o.source.name)
            for group, o in zip(link([o.signature for o in originals], mapped), originals)
            if first.setdefault(group, o.source.name) != o.source.name]


def _digest(signature: Signature) -> bytes:
    parts = signature.codes, signature.places, signature.thumb
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


# ------------------------------------------------------------------ images without features

def plain_copies(signatures: list[Signature]) -> list[tuple[int, int]]:
    """Pairs i < j that look the same, turned by right angles or flipped, one of few features.

    An image mostly of air has too few features to be registered, and its copy may have one more;
    but their thumbnails correlate. Blank ones are left alone: they all look the same.
    """
    few = [i for i, s in enumerate(signatures)
           if len(s.codes) < ENOUGH_FEATURES and s.thumb.std() > FLAT]
    if len(few) < 2:
        return []
    thumbs = np.stack([signatures[i].thumb for i in few]).astype(np.float32)
    thumbs -= thumbs.mean((1, 2), keepdims=True)
    thumbs /= np.linalg.norm(thumbs, axis=(1, 2), keepdims=True)
    lacking = np.array([len(signatures[i].codes) < LEAST_INLIERS for i in few])
    flat = thumbs.reshape(len(few), -1)
    pairs = set()
    for start in range(0, len(few), PLAIN_BLOCK):
        block = thumbs[start:start + PLAIN_BLOCK]
        for turn in range(4):
            turned = np.rot90(block, turn, (1, 2))
            for one in (turned, turned[:, :, ::-1]):
                alike = np.ascontiguousarray(one).reshape(len(block), -1) @ flat.T > PLAIN_AGREEMENT
                rows, columns = np.nonzero(alike)
                rows += start
                kept = (rows != columns) & (lacking[rows] | lacking[columns])
                pairs |= {(few[min(pair)], few[max(pair)])
                          for pair in zip(rows[kept].tolist(), columns[kept].tolist())}
    return sorted(pairs)
