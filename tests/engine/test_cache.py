from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from roadkit.engine.cache import PAGE, PagedCache, page_keys

DEVICE = torch.device("cpu")


def cache(pages: int = 4) -> PagedCache:
    return PagedCache(pages, device=DEVICE)


def test_pool_is_all_or_nothing():
    pool = cache(4)
    taken = pool.allocate(3)
    assert taken is not None
    assert len(set(taken)) == 3
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    assert pool.allocate(0) == []
    pool.release(taken)
    assert pool.num_free == 4


def take(pool: PagedCache, count: int) -> list[int]:
    pages = pool.allocate(count)
    assert pages is not None
    return pages


def test_releasing_twice_is_our_mistake():
    pool = cache()
    pages = take(pool, 1)
    pool.release(pages)
    with pytest.raises(AssertionError, match=f"page {pages[0]} released more often than taken"):
        pool.release(pages)


def test_remembered_pages_are_shared_and_outlive_their_users():
    pool, keys = cache(4), [b"a", b"b", b"c"]
    pages = take(pool, 3)
    for page, key in zip(pages, keys, strict=True):
        pool.remember(page, key)
    assert pool.lookup(keys) == pages
    pool.release(pages)
    pool.release(pages)
    assert pool.num_free == 4
    assert pool.lookup([b"a", b"b", b"x", b"c"]) == pages[:2]
    assert pool.num_free == 2
    assert pool.lookup([b"b"]) == pages[1:2]
    assert pool.lookup([b"x"]) == []


def test_least_recently_used_content_goes_first_and_beginnings_last():
    pool = cache(4)
    old, new = take(pool, 2), take(pool, 2)
    for page, key in zip(old + new, [b"old0", b"old1", b"new0", b"new1"], strict=True):
        pool.remember(page, key)
    pool.release(old)
    pool.release(new)
    assert pool.allocate(1) == old[1:], "the end of the older prompt is the first to go"
    assert pool.lookup([b"old0", b"old1"]) == old[:1]
    assert pool.lookup([b"new0", b"new1"]) == new


def test_forgotten_content_is_not_found():
    pool = cache(2)
    pages = take(pool, 2)
    pool.remember(pages[0], b"a")
    pool.release(pages)
    pool.allocate(2)
    assert pool.lookup([b"a"]) == []


def test_same_content_is_remembered_once():
    pool = cache(2)
    one, other = take(pool, 2)
    pool.remember(one, b"a")
    pool.remember(other, b"a")
    pool.remember(one, b"b")
    assert pool.lookup([b"a"]) == [one]
    assert pool.lookup([b"b"]) == []


def test_keys_name_the_adapter_and_every_token_so_far():
    tokens = list(range(3 * PAGE + 5))
    keys = page_keys("formal", tokens)
    assert len(set(keys)) == len(keys) == 3
    assert page_keys("formal", tokens[: 2 * PAGE]) == keys[:2]
    assert page_keys("formal", tokens[: PAGE - 1]) == []
    assert not set(keys) & set(page_keys("german", tokens))
    assert not set(keys) & set(page_keys("", tokens))
    changed = page_keys("formal", [99, *tokens[1:]])
    assert not set(keys) & set(changed), "a different beginning changes every page after it"
    late = page_keys("formal", [*tokens[: 2 * PAGE], 99, *tokens[2 * PAGE + 1 :]])
    assert late[:2] == keys[:2]
    assert late[2] != keys[2]


def test_layers_are_made_when_first_used():
    pool = cache(4)
    assert not pool.keys
    keys, values = pool.layer(3, 2, 8, torch.bfloat16)
    assert keys.shape == (5, 2, 8, PAGE)  # one spare page for padding
    assert values.shape == (5, 2, PAGE, 8)
    assert keys.dtype == values.dtype == torch.float32
    assert pool.layer(3, 2, 8, torch.float32)[0] is keys
    assert set(pool.keys) == {3}


class CacheMachine(RuleBasedStateMachine):
    """Takes and gives back pages in every order, beside a model that only counts."""

    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.pool = cache(6)
        self.users: dict[int, int] = {}
        self.content: dict[int, bytes] = {}  # what was last remembered of a page since it was allocated

    @rule(target=held, count=st.integers(0, 7))
    def allocate(self, count):
        pages = self.pool.allocate(count)
        if pages is None:
            assert count > 6 - len(self.users)
            return []
        assert not set(pages) & self.users.keys(), "a page in use was given away"
        for page in pages:
            self.users[page] = 1
            self.content.pop(page, None)
        return pages

    @rule(pages=held, name=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def remember(self, pages, name):
        for i, page in enumerate(pages):
            if page in self.users:
                key = name + bytes([i])
                self.pool.remember(page, key)
                if key not in self.content.values():
                    self.content.setdefault(page, key)

    @rule(target=held, name=st.sampled_from([b"a", b"b", b"c", b"d"]), count=st.integers(1, 3))
    def lookup(self, name, count):
        pages = self.pool.lookup([name + bytes([i]) for i in range(count)])
        for i, page in enumerate(pages):
            assert self.content[page] == name + bytes([i]), "a page with other content was found"
            self.users[page] = self.users.get(page, 0) + 1
        return pages

    @rule(pages=consumes(held))
    def release(self, pages):
        self.pool.release(pages)
        for page in pages:
            self.users[page] -= 1
            if not self.users[page]:
                del self.users[page]

    @invariant()
    def nothing_is_lost(self):
        assert self.pool.num_free == 6 - len(self.users)
        assert self.pool._page_of == {key: page for page, key in self.content.items()}


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=40, stateful_step_count=30)
