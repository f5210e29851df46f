// C++'s allocation, which Luau's compiler uses: from the one heap that Rust and Luau have, too, so that
// what compiling has left behind is free for the script.
//
// When there is no memory it throws. zig's libc++, built without exceptions, aborts: a trap, where Luau's
// own error handling can turn the exception into an error of loading.

#include <cstddef>
#include <cstdlib>
#include <new>

void* operator new(std::size_t size)
{
    if (void* memory = std::malloc(size))
        return memory;
    throw std::bad_alloc();
}

void* operator new(std::size_t size, const std::nothrow_t&) noexcept
{
    return std::malloc(size);
}

void* operator new[](std::size_t size, const std::nothrow_t&) noexcept
{
    return std::malloc(size);
}

// The forms that are not here call these ones.
void operator delete(void* memory) noexcept
{
    std::free(memory);
}
