"""Blocks of words that the rows of a group share, in sizes that double: a row takes the room that it needs.

    heads (rows, 4) int64    first word of the row's block, order of the block (0 for none), elements in use, and one
                             number that is the group's own
    words (a,) int64         all blocks
    rooms (parts, ...) int64 of each part, which one thread at a time works on: the word where its next block begins,
                             the word where its room ends; then by order the first block that is free, -1 for none. A
                             free block holds the next one in its first word.

A block of order o has room for `least << (o - 1)` elements, at most for `most`. A kernel that finds no room says where
it stopped; it is called again from there when there is more.
"""

from headrace.kernels.compile import Int, Ints, lean_kernel, part

START, ORDER, COUNT, OWN = 0, 1, 2, 3
NEXT, END, FREE = 0, 1, 2
ORDERS = 22
"""A block has at most 2**21 times the least elements."""


@part
def room_of(order: Int, least: Int, most: Int) -> Int:
    """Elements that a block of an order has room for."""
    return min(least << (order - 1), most) if order > 0 else 0


@part
def order_of(count: Int, least: Int, most: Int) -> Int:
    """The least order with room for `count` elements, count <= most."""
    order: Int = 0
    while room_of(order, least, most) < count:
        order += 1
    return order


@part
def take_block(words: Ints, rooms: Ints, number: Int, order: Int, size: Int) -> Int:
    """First word of a free block of `size` words for the part `number`; -1 where there is no room."""
    block: Int = rooms[number, FREE + order]
    if block >= 0:
        rooms[number, FREE + order] = words[block]
        return block
    block = rooms[number, NEXT]
    if block + size > rooms[number, END]:
        return -1
    rooms[number, NEXT] = block + size
    return block


@part
def give_block(words: Ints, rooms: Ints, number: Int, order: Int, block: Int) -> None:
    """Have a block used again."""
    words[block] = rooms[number, FREE + order]
    rooms[number, FREE + order] = block


@part
def make_block(
    heads: Ints, words: Ints, rooms: Ints, number: Int, row: Int, count: Int, least: Int, most: Int, width: Int
) -> bool:
    """Give an empty row a block for `count` elements of `width` words, all in use; false where there is no room."""
    order = order_of(count, least, most)
    start: Int = 0
    if order > 0:
        start = take_block(words, rooms, number, order, room_of(order, least, most) * width)
        if start < 0:
            return False
    heads[row, START] = start
    heads[row, ORDER] = order
    heads[row, COUNT] = count
    return True


@part
def drop_first(
    heads: Ints,
    words: Ints,
    rooms: Ints,
    number: Int,
    row: Int,
    gone: Int,
    grows: bool,
    least: Int,
    most: Int,
    width: Int,
) -> bool:
    """Drop the first `gone` elements of a row's block; if it `grows`, move the others to one of the next order.

    False, and nothing is changed, where there is no room.
    """
    start, order, count = heads[row, START], heads[row, ORDER], heads[row, COUNT]
    target = start
    if grows:
        target = take_block(words, rooms, number, order + 1, room_of(order + 1, least, most) * width)
        if target < 0:
            return False
    first = start + gone * width
    for word in range((count - gone) * width):
        words[target + word] = words[first + word]
    if grows:
        if order > 0:
            give_block(words, rooms, number, order, start)
        heads[row, START] = target
        heads[row, ORDER] = order + 1
    heads[row, COUNT] = count - gone
    return True


@lean_kernel
def clear_blocks(heads: Ints, words: Ints, rooms: Ints, own: Int, rows: Ints) -> None:
    """Empty rows (n,) and free their blocks; `own` is the group's number of an empty row."""
    for i in range(rows.size):
        row = rows[i]
        if heads[row, ORDER] > 0:
            give_block(words, rooms, 0, heads[row, ORDER], heads[row, START])
        heads[row, START] = 0
        heads[row, ORDER] = 0
        heads[row, COUNT] = 0
        heads[row, OWN] = own
