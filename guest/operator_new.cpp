// C++'s allocation, with the exception that zig's libc++, built without exceptions, turns into an abort.
//
// Luau's compiler allocates with it. When the memory of a tenant is too small for its source text, the
// exception ends in Luau's own error handling, and loading fails with an error instead of a trap.

#include <cstdlib>
#include <new>

void* operator new(std::size_t size)
{
    if (void* memory = std::malloc(size ? size : 1))
        return memory;
    throw std::bad_alloc();
}
