/* policy.c - the lists and the heap behind static, lru and 2q.
 *
 * Memory: one block, cut into rank, prev, next, heap (uint32_t) and place, queue, class (uint8_t).
 * prev and next have PLLM_POLICY_LISTS entries more than there are pages, the lists' sentinels, so
 * that linking has no special cases. A page of the heap keeps its heap index in prev.
 *
 * Invariants: 1. a page is in the list or heap that place says, and in no other;
 * 2. count[], heap_count and in_count are right; 3. no page of the heap has a lower rank below it
 * than its parent's... that is, parents come first: higher rank, then higher number. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "pager/policy.h"

enum { NONE = UINT32_MAX };

static const char *const policy_names[PLLM_POLICY_COUNT] = {"static", "lru", "2q"};

int pllm_policy_from_name(const char *name, pllm_policy_kind *kind_out)
{
    for (int kind = 0; name && kind < PLLM_POLICY_COUNT; kind++) {
        if (strcmp(name, policy_names[kind])) continue;
        *kind_out = (pllm_policy_kind)kind;
        return PLLM_OK;
    }
    return pllm_fail(PLLM_EINVAL, 0, "policy '%s' is unknown: use one of static, lru, 2q",
                     name ? name : "");
}

const char *pllm_policy_name(pllm_policy_kind kind)
{
    return policy_names[kind];
}

uint64_t pllm_policy_bytes(uint32_t page_max)
{
    uint64_t words = 4 * (uint64_t)page_max + 2 * PLLM_POLICY_LISTS;
    return 4 * words + 3 * (uint64_t)page_max;
}

void pllm_policy_init(pllm_policy *policy, pllm_policy_kind kind, uint32_t page_max,
                      uint32_t capacity, void *memory)
{
    *policy = (pllm_policy){.kind = kind, .page_max = page_max, .capacity = capacity};
    policy->rank = memory;
    policy->heap = policy->rank + page_max;
    policy->prev = policy->heap + page_max;
    policy->next = policy->prev + page_max + PLLM_POLICY_LISTS;
    policy->place = (uint8_t *)(policy->next + page_max + PLLM_POLICY_LISTS);
    policy->queue = policy->place + page_max;
    policy->class = policy->queue + page_max;
    memset(memory, 0, pllm_policy_bytes(page_max));
    memset(policy->place, PLLM_POLICY_ABSENT, page_max);
    for (uint32_t list = 0; list < PLLM_POLICY_LISTS; list++)
        policy->prev[page_max + list] = policy->next[page_max + list] = page_max + list;
}

/* ---- lists ---- */

static void list_push(pllm_policy *policy, uint32_t list, uint32_t page) /* newest */
{
    uint32_t sentinel = policy->page_max + list, first = policy->next[sentinel];
    policy->prev[page] = sentinel;
    policy->next[page] = first;
    policy->prev[first] = page;
    policy->next[sentinel] = page;
    policy->place[page] = (uint8_t)list;
    policy->count[list]++;
}

static void list_remove(pllm_policy *policy, uint32_t page)
{
    policy->next[policy->prev[page]] = policy->next[page];
    policy->prev[policy->next[page]] = policy->prev[page];
    policy->count[policy->place[page]]--;
    policy->place[page] = PLLM_POLICY_ABSENT;
}

static uint32_t list_oldest(const pllm_policy *policy, uint32_t list)
{
    return policy->count[list] ? policy->prev[policy->page_max + list] : (uint32_t)NONE;
}

/* ---- the heap: highest (rank, page) at index 0 ---- */

static int goes_before(const pllm_policy *policy, uint32_t a, uint32_t b)
{
    uint32_t rank_a = policy->rank[a], rank_b = policy->rank[b];
    return rank_a != rank_b ? rank_a > rank_b : a > b;
}

static void heap_put(pllm_policy *policy, uint32_t index, uint32_t page)
{
    policy->heap[index] = page;
    policy->prev[page] = index;
}

static void heap_rise(pllm_policy *policy, uint32_t index, uint32_t page)
{
    while (index > 0) {
        uint32_t parent = (index - 1) / 2;
        if (!goes_before(policy, page, policy->heap[parent])) break;
        heap_put(policy, index, policy->heap[parent]);
        index = parent;
    }
    heap_put(policy, index, page);
}

static void heap_sink(pllm_policy *policy, uint32_t index, uint32_t page)
{
    for (;;) {
        uint32_t child = 2 * index + 1;
        if (child >= policy->heap_count) break;
        if (child + 1 < policy->heap_count &&
            goes_before(policy, policy->heap[child + 1], policy->heap[child]))
            child++;
        if (!goes_before(policy, policy->heap[child], page)) break;
        heap_put(policy, index, policy->heap[child]);
        index = child;
    }
    heap_put(policy, index, page);
}

static void heap_push(pllm_policy *policy, uint32_t page)
{
    policy->place[page] = PLLM_POLICY_HEAP;
    heap_rise(policy, policy->heap_count++, page);
}

static void heap_remove(pllm_policy *policy, uint32_t page)
{
    uint32_t index = policy->prev[page];
    uint32_t last = policy->heap[--policy->heap_count];
    policy->place[page] = PLLM_POLICY_ABSENT;
    if (last == page) return;
    if (goes_before(policy, last, page))
        heap_rise(policy, index, last);
    else
        heap_sink(policy, index, last);
}

/* ---- pages ---- */

static void page_remove(pllm_policy *policy, uint32_t page)
{
    if (policy->place[page] == PLLM_POLICY_HEAP)
        heap_remove(policy, page);
    else if (policy->place[page] != PLLM_POLICY_ABSENT)
        list_remove(policy, page);
}

static void page_insert(pllm_policy *policy, uint32_t page)
{
    if (policy->class[page] == PLLM_CLASS_DOOMED)
        list_push(policy, PLLM_POLICY_DOOMED, page);
    else if (policy->class[page] == PLLM_CLASS_KEPT)
        list_push(policy, PLLM_POLICY_KEPT, page);
    else if (policy->queue[page] == PLLM_POLICY_HEAP)
        heap_push(policy, page);
    else
        list_push(policy, policy->queue[page], page);
}

void pllm_policy_arrive(pllm_policy *policy, uint32_t page, int parked)
{
    assert(!pllm_policy_is_resident(policy, page));
    uint8_t queue = policy->kind == PLLM_POLICY_STATIC ? PLLM_POLICY_HEAP : PLLM_POLICY_MAIN;
    if (policy->kind == PLLM_POLICY_2Q && policy->place[page] != PLLM_POLICY_OUT)
        queue = PLLM_POLICY_IN;
    page_remove(policy, page); /* from A1out */
    policy->queue[page] = queue;
    policy->in_count += queue == PLLM_POLICY_IN;
    if (parked)
        list_push(policy, PLLM_POLICY_PARKED, page);
    else
        page_insert(policy, page);
    /* A1out is cut here and not when a page enters it: the page that arrives is looked up before
     * the page that went for it pushes the oldest out. */
    while (policy->count[PLLM_POLICY_OUT] > policy->capacity / 2)
        list_remove(policy, list_oldest(policy, PLLM_POLICY_OUT));
}

void pllm_policy_leave(pllm_policy *policy, uint32_t page, int evicted)
{
    assert(pllm_policy_is_resident(policy, page));
    page_remove(policy, page);
    policy->in_count -= policy->queue[page] == PLLM_POLICY_IN;
    if (policy->class[page] == PLLM_CLASS_DOOMED)
        policy->class[page] = PLLM_CLASS_NORMAL;
    else if (evicted && policy->queue[page] == PLLM_POLICY_IN)
        list_push(policy, PLLM_POLICY_OUT, page);
}

void pllm_policy_forget(pllm_policy *policy, uint32_t page, uint32_t rank)
{
    assert(!pllm_policy_is_resident(policy, page));
    page_remove(policy, page);
    policy->class[page] = PLLM_CLASS_NORMAL;
    policy->rank[page] = rank;
}

void pllm_policy_touch(pllm_policy *policy, uint32_t page)
{
    uint32_t list = policy->place[page];
    if (list == PLLM_POLICY_DOOMED) {
        if (policy->class[page] == PLLM_CLASS_DOOMED) return; /* a hint stands */
        list_remove(policy, page);
        page_insert(policy, page);
        return;
    }
    if (policy->next[policy->page_max + list] == page) return; /* is the newest */
    list_remove(policy, page);
    list_push(policy, list, page);
}

void pllm_policy_park(pllm_policy *policy, uint32_t page)
{
    if (policy->place[page] == PLLM_POLICY_PARKED) return;
    assert(pllm_policy_is_resident(policy, page));
    page_remove(policy, page);
    list_push(policy, PLLM_POLICY_PARKED, page);
}

void pllm_policy_unpark(pllm_policy *policy, uint32_t page)
{
    list_remove(policy, page);
    page_insert(policy, page);
}

void pllm_policy_offer_first(pllm_policy *policy, uint32_t page)
{
    if (policy->place[page] != PLLM_POLICY_PARKED) return;
    list_remove(policy, page);
    list_push(policy, PLLM_POLICY_DOOMED, page);
}

void pllm_policy_set_class(pllm_policy *policy, uint32_t page, pllm_policy_class chosen)
{
    policy->class[page] = (uint8_t)chosen;
    if (!pllm_policy_is_resident(policy, page) || policy->place[page] == PLLM_POLICY_PARKED)
        return; /* takes effect when it arrives or is offered */
    page_remove(policy, page);
    page_insert(policy, page);
}

/* The page that comes next, whether it may go or not. */
static uint32_t candidate(const pllm_policy *policy)
{
    uint32_t page = list_oldest(policy, PLLM_POLICY_DOOMED);
    if (page != NONE) return page;
    if (policy->kind == PLLM_POLICY_STATIC) {
        if (policy->heap_count) return policy->heap[0];
    } else {
        uint32_t in = list_oldest(policy, PLLM_POLICY_IN);
        uint32_t main = list_oldest(policy, PLLM_POLICY_MAIN);
        if (in != NONE && (policy->in_count > policy->capacity / 4 || main == NONE)) return in;
        if (main != NONE) return main;
    }
    return list_oldest(policy, PLLM_POLICY_KEPT);
}

uint32_t pllm_policy_victim(pllm_policy *policy, pllm_policy_may_go *may_go, void *user)
{
    for (;;) {
        uint32_t page = candidate(policy);
        if (page == NONE || !may_go || may_go(user, page)) return page;
        pllm_policy_park(policy, page);
    }
}

/* ---- check ---- */

static void require(int condition)
{
    if (!condition) abort();
}

void pllm_policy_check(const pllm_policy *policy)
{
    uint32_t in_count = 0, heap_count = 0, count[PLLM_POLICY_LISTS] = {0};
    for (uint32_t page = 0; page < policy->page_max; page++) {
        uint8_t place = policy->place[page];
        if (place == PLLM_POLICY_HEAP) {
            uint32_t index = policy->prev[page];
            require(index < policy->heap_count && policy->heap[index] == page);
            require(!index || goes_before(policy, policy->heap[(index - 1) / 2], page));
            heap_count++;
        } else if (place < PLLM_POLICY_LISTS) {
            require(policy->next[policy->prev[page]] == page);
            require(policy->prev[policy->next[page]] == page);
            count[place]++;
        } else {
            require(place == PLLM_POLICY_ABSENT);
        }
        in_count += pllm_policy_is_resident(policy, page) && policy->queue[page] == PLLM_POLICY_IN;
    }
    require(in_count == policy->in_count && heap_count == policy->heap_count);
    for (uint32_t list = 0; list < PLLM_POLICY_LISTS; list++) {
        uint32_t walked = 0, sentinel = policy->page_max + list;
        for (uint32_t page = policy->next[sentinel]; page != sentinel; page = policy->next[page]) {
            require(policy->place[page] == list);
            walked++;
        }
        require(walked == policy->count[list] && walked == count[list]);
    }
}
