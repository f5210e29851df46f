"""Copies published crates and makes the few changes that the guest needs.

Usage: patch_crates.py METADATA FOLDER, where METADATA is what `cargo metadata` printed; each copy
goes to FOLDER/NAME. Each change names its file, what stands there, what shall stand there, and why.
One that finds anything but exactly one place is an error, so a new version of a crate cannot be
patched by halves. interpreter.py then rewrites Luau's interpreter.
"""

import json
import os
import shutil
import sys

import interpreter

MLUA = [
    # WASI has no tmpfile, which the heap dump writes to. Without one the dump ends at once, with nothing.
    (
        "src/luau/heap_dump.rs",
        "            let file = libc::tmpfile();\n",
        '            #[cfg(target_os = "wasi")]\n            let file: *mut libc::FILE = std::ptr::null_mut();\n'
        '            #[cfg(not(target_os = "wasi"))]\n            let file = libc::tmpfile();\n',
    ),
    # When memory cannot grow, mlua aborts. Luau can do better: a null pointer is its "not enough memory".
    (
        "src/memory.rs",
        "            alloc::handle_alloc_error(new_layout);\n",
        "            mem_state.used_memory -= mem_diff;\n            mem_state.ask_for_collection();\n",
    ),
    (
        "src/memory.rs",
        "        alloc::handle_alloc_error(old_layout);\n",
        "        mem_state.used_memory -= mem_diff;\n        mem_state.ask_for_collection();\n",
    ),
    # Luau collects when its heap has doubled, whatever the limit: a script that keeps more than half of
    # its memory alive would run out of it, with the rest full of garbage. Near the limit, the allocator
    # asks for a full collection, which Luau's interrupt runs at the next safe point.
    (
        "src/memory.rs",
        "    limit_reached: bool,\n}\n",
        """    limit_reached: bool,
    // Above this many bytes the allocator asks for a collection.
    collect_above: isize,
    // Where to ask. Null as long as there is no limit.
    callbacks: *mut ffi::lua_Callbacks,
    // Whether it has asked, and nothing was collected since.
    collection_wanted: bool,
}

impl MemoryState {
    pub(crate) unsafe fn watch(&mut self, state: *mut ffi::lua_State) {
        self.callbacks = ffi::lua_callbacks(state);
        self.aim();
    }

    // When half of what is free now is used: the other half is for a large block, which cannot wait for a
    // collection, and the cost of all collections stays in proportion to what was allocated.
    fn aim(&mut self) {
        let free = (self.memory_limit - self.used_memory).max(0);
        self.collect_above = self.used_memory + free / 2;
    }

    // An interrupt that somebody else has set goes first, and does this one's work as well: see
    // `neoc_collect_if_wanted`.
    unsafe fn ask_for_collection(&mut self) {
        self.collection_wanted = true;
        if !self.callbacks.is_null() && (*self.callbacks).interrupt.is_none() {
            (*self.callbacks).interrupt = Some(collect);
        }
    }
}

unsafe extern "C-unwind" fn collect(state: *mut ffi::lua_State, gc: std::os::raw::c_int) {
    // From within the collector Luau calls with its phase, which is no safe point.
    if gc < 0 {
        let interrupt = &mut (*ffi::lua_callbacks(state)).interrupt;
        if interrupt.is_some_and(|interrupt| ptr::fn_addr_eq(interrupt, collect as unsafe extern "C-unwind" fn(_, _))) {
            *interrupt = None;
        }
        (*MemoryState::get(state)).collection_wanted = false;
        ffi::lua_gc(state, ffi::LUA_GCCOLLECT, 0);
        (*MemoryState::get(state)).aim();
    }
}

// For an interrupt that took the place of `collect`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn neoc_collect_if_wanted(state: *mut ffi::lua_State) {
    if (*MemoryState::get(state)).collection_wanted {
        collect(state, -1);
    }
}
""",
    ),
    (
        "src/memory.rs",
        "#[repr(C)]\n#[derive(Default)]\npub(crate) struct MemoryState {\n",
        """impl Default for MemoryState {
    fn default() -> Self {
        Self {
            used_memory: 0,
            memory_limit: 0,
            ignore_limit: false,
            limit_reached: false,
            collect_above: isize::MAX,
            callbacks: ptr::null_mut(),
            collection_wanted: false,
        }
    }
}

#[repr(C)]
pub(crate) struct MemoryState {
""",
    ),
    (
        "src/memory.rs",
        "    let mem_limit = mem_state.memory_limit;\n"
        "    let new_used_memory = mem_state.used_memory + mem_diff;\n",
        "    let mem_limit = mem_state.memory_limit;\n"
        "    let new_used_memory = mem_state.used_memory + mem_diff;\n"
        "    // A long block asks early: another one like it must not be what finds the memory full.\n"
        "    if mem_diff > 0 && new_used_memory + 2 * mem_diff > mem_state.collect_above {\n"
        "        mem_state.ask_for_collection();\n    }\n",
    ),
    (
        "src/state.rs",
        "                    let prev_limit = (*mem_state).set_memory_limit(limit);\n",
        "                    let prev_limit = (*mem_state).set_memory_limit(limit);\n"
        "                    (*mem_state).watch(lua.state());\n",
    ),
    # A list that every request changes, beside what else of mlua's it does; grown later, it would lie elsewhere.
    ("src/state/extra.rs", "            ref_free: Vec::new(),\n", "            ref_free: Vec::with_capacity(64),\n"),
]

LUAU = [
    # What every request changes, beside the rest of that: what is in use is counted at each allocation, and every
    # function that is loaded has a number.
    (
        "luau/VM/src/lstate.h",
        "    size_t memcatbytes[LUA_MEMORY_CATEGORIES]; // total amount of memory used by each memory category\n\n",
        "",
    ),
    ("luau/VM/src/lstate.h", "    uint32_t lastprotoid;\n\n", ""),
    (
        "luau/VM/src/lstate.h",
        "    lua_Callbacks cb;\n",
        "    uint32_t lastprotoid;\n"
        "    size_t memcatbytes[LUA_MEMORY_CATEGORIES]; // total amount of memory used by each memory category\n\n"
        "    lua_Callbacks cb;\n",
    ),
    # WebAssembly cannot jump to an address. Compilers make a computed jump a table of numbers and a switch over
    # them; the interpreter's own switch over the opcode spares each instruction a load.
    (
        "luau/VM/src/lvmexecute.cpp",
        "#if defined(__GNUC__) || defined(__clang__)\n#define VM_USE_CGOTO 1\n",
        "#if (defined(__GNUC__) || defined(__clang__)) && !defined(__wasm__)\n#define VM_USE_CGOTO 1\n",
    ),
    # Luau gives each size of object pages of its own, and each page that a request touches is one that
    # the host must put back. With small pages the sizes lie close together in memory.
    (
        "luau/VM/src/lmem.cpp",
        "const size_t kSmallPageSize = 16 * 1024 - kExternalAllocatorMetaDataReduction;\n"
        "const size_t kLargePageSize = 32 * 1024 - kExternalAllocatorMetaDataReduction;\n",
        "const size_t kSmallPageSize = 1024 - kExternalAllocatorMetaDataReduction;\n"
        "const size_t kLargePageSize = 4 * 1024 - kExternalAllocatorMetaDataReduction;\n"
        "const size_t kLargeHeap = 1024 * 1024;\n"
        "const size_t kSmallPageSizeOfLargeHeap = 16 * 1024 - kExternalAllocatorMetaDataReduction;\n"
        "const size_t kLargePageSizeOfLargeHeap = 32 * 1024 - kExternalAllocatorMetaDataReduction;\n",
    ),
    # A script that keeps more has them in Luau's own sizes: an allocation for twenty objects, and a page for the
    # collector to look at, would cost it a good part of its time. Near its limit small ones do.
    (
        "luau/VM/src/lmem.cpp",
        "    lua_Page* page = newpage<path, type, nothrow>(L, pageset, pageSize, blockSize, blockCount);\n\n"
        "    // prepend",
        """    lua_Page* page = NULL;
    if (L->global->totalbytes > kLargeHeap)
    {
        int largeSize = sizeOfClass > int(kLargePageThreshold) ? kLargePageSizeOfLargeHeap : kSmallPageSizeOfLargeHeap;
        int largeCount = (largeSize - offsetof(lua_Page, data)) / blockSize;
        page = newpage<path, type, true>(L, pageset, largeSize, blockSize, largeCount);
    }
    if (!page)
        page = newpage<path, type, nothrow>(L, pageset, pageSize, blockSize, blockCount);

    // prepend""",
    ),
    # For the same reason: after this call what is new gets new pages, though old ones have room.
    (
        "luau/VM/src/lmem.cpp",
        "void* luaM_new_(lua_State* L, size_t nsize, uint8_t memcat)\n{\n",
        """static void forgetbelow(lua_Page** pages, uintptr_t end)
{
    while (lua_Page* page = *pages)
    {
        if (uintptr_t(page) >= end)
        {
            pages = &page->next;
            continue;
        }
        *pages = page->next;
        if (page->next)
            page->next->prev = page->prev;
        page->prev = NULL;
        page->next = NULL;
    }
}

static void beginnewpages(lua_State* L, uintptr_t end)
{
    global_State* g = L->global;
    for (size_t i = 0; i < kSizeClasses; ++i)
    {
        forgetbelow(&g->freepages[i], end);
        forgetbelow(&g->freegcopages[i], end);
    }
}

extern "C" void neoc_begin_new_pages(lua_State* L)
{
    beginnewpages(L, UINTPTR_MAX);
}

#include "lstring.h"

struct Allocator
{
    lua_Alloc allocate;
    void* context;
};

// Frees nothing: what comes next would lie where it was.
static void* allocateanew(void* context, void* block, size_t oldsize, size_t newsize)
{
    Allocator* allocator = static_cast<Allocator*>(context);
    if (newsize == 0)
        return NULL;
    void* moved = allocator->allocate(allocator->context, NULL, 0, newsize);
    if (moved && block)
        memcpy(moved, block, oldsize < newsize ? oldsize : newsize);
    return moved;
}

static bool movestack(void*, lua_Page*, GCObject* object)
{
    if (object->gch.tt == LUA_TTHREAD)
    {
        // Larger by little, so that they cannot stay where they are.
        lua_State* thread = gco2th(object);
        luaD_reallocstack(thread, thread->stacksize - EXTRA_STACK + 8, 0);
        luaD_reallocCI(thread, thread->size_ci + 1);
    }
    return false;
}

// Has the next block of the heap begin where a page of memory does, while it has no holes: blocks then lie side by side,
// each behind a word of the allocator's own. With another allocator, as in native tests, it begins anywhere.
static void beginatpage(const Allocator* allocator)
{
    const size_t pagesize = 4096, smallest = 16, header = sizeof(void*);
    uintptr_t next = uintptr_t(allocator->allocate(allocator->context, NULL, 0, smallest - header)) + smallest;
    size_t rest = pagesize - next % pagesize;
    allocator->allocate(allocator->context, NULL, 0, (rest < smallest ? rest + pagesize : rest) - header);
}

// Moves what every request changes behind all else: the table of all strings, which fills a page, and the stacks.
extern "C" void neoc_move_arrays(lua_State* L)
{
    global_State* g = L->global;
    Allocator allocator = {g->frealloc, g->ud};
    beginatpage(&allocator);
    g->frealloc = allocateanew;
    g->ud = &allocator;
    luaS_resize(L, g->strt.size);
    movestack(NULL, NULL, obj2gco(g->mainthread));
    luaM_visitgco(L, NULL, movestack);
    g->frealloc = allocator.allocate;
    g->ud = allocator.context;
    // What was moved away has made room in old pages.
    beginnewpages(L, uintptr_t(g->strt.hash));
}

void* luaM_new_(lua_State* L, size_t nsize, uint8_t memcat)
{
""",
    ),
    # A protected call that puts no function on the stack. mlua makes two for each call, one for errors.
    (
        "luau/VM/src/ldo.cpp",
        "int luaD_pcall(lua_State* L, Pfunc func, void* u, ptrdiff_t old_top, ptrdiff_t ef)\n{\n",
        """extern "C" int neoc_protected(lua_State* L, Pfunc func, void* u)
{
    return luaD_pcall(L, func, u, savestack(L, L->top), 0);
}

int luaD_pcall(lua_State* L, Pfunc func, void* u, ptrdiff_t old_top, ptrdiff_t ef)
{
""",
    ),
    # A thread that a script has got hold of keeps a mark: it must not begin again for another request.
    (
        "luau/VM/src/lcorolib.cpp",
        "    if (lua_pushthread(L))\n        lua_pushnil(L); // main thread is not a coroutine\n",
        "    lua_setthreaddata(L, L);\n"
        "    if (lua_pushthread(L))\n        lua_pushnil(L); // main thread is not a coroutine\n",
    ),
    # See `join`.
    (
        "src/lib.rs",
        '            .add_files_by_ext_sorted(&vm_source_dir, "cpp")\n',
        '            .add_files_by_ext_sorted(&luau_source_dir.join("VM").join("units"), "cpp")\n',
    ),
    # A call costs more in WebAssembly than what these small functions do.
    ("luau/VM/src/lstrlib.cpp", "static int singlematch(", "static LUAU_FORCEINLINE int singlematch("),
    (
        "luau/VM/src/lgc.cpp",
        "#define markvalue(g, o) \\\n    { \\\n        checkconsistency(o); \\\n"
        "        if (iscollectable(o) && iswhite(gcvalue(o))) \\\n            reallymarkobject(g, gcvalue(o)); \\\n",
        """static void reallymarkobject(global_State* g, GCObject* o);

static LUAU_FORCEINLINE void markwhite(global_State* g, GCObject* o)
{
    if (o->gch.tt == LUA_TTABLE)
    {
        white2gray(o);
        gco2h(o)->gclist = g->gray;
        g->gray = o;
    }
    else if (o->gch.tt == LUA_TSTRING)
        stringmark(gco2ts(o));
    else
        reallymarkobject(g, o);
}

#define markvalue(g, o) \\
    { \\
        checkconsistency(o); \\
        if (iscollectable(o) && iswhite(gcvalue(o))) \\
            markwhite(g, gcvalue(o)); \\
""",
    ),
    # A collection begins when the heap has grown to its goal. Luau computes from how long the last one took when to begin,
    # and the guest's clock, which steps by 1 ms, tells it anything: some began at once, some at many times the goal.
    (
        "luau/VM/src/lgc.cpp",
        "static int64_t getheaptriggererroroffset(global_State* g)\n{\n",
        "#if 0\nstatic int64_t getheaptriggererroroffset(global_State* g)\n{\n",
    ),
    # Luau collects when its heap has doubled. That of a small script, whose live part is the standard library, would be
    # marked whole again and again by a VM that many short requests share.
    (
        "luau/VM/src/lgc.cpp",
        "size_t luaC_step(lua_State* L, bool assist)\n{\n",
        """#endif

// How much a heap may grow between two collections, at the least. Near the limit of the heap the allocator asks for a
// collection all the same.
static const size_t kLeastGrowth = 512 * 1024;

static size_t heapgoal(global_State* g)
{
    size_t grown = g->totalbytes + kLeastGrowth;
    size_t goal = (g->totalbytes / 100) * g->gcgoal;
    return goal > grown ? goal : grown;
}

size_t luaC_step(lua_State* L, bool assist)
{
""",
    ),
    (
        "luau/VM/src/lgc.cpp",
        "        size_t heapgoal = (g->totalbytes / 100) * g->gcgoal;\n"
        "        size_t heaptrigger = getheaptrigger(g, heapgoal);\n\n        g->GCthreshold = heaptrigger;\n\n"
        "        g->gcstats.heapgoalsizebytes = heapgoal;\n",
        "        g->GCthreshold = heapgoal(g);\n        g->gcstats.heapgoalsizebytes = g->GCthreshold;\n",
    ),
    (
        "luau/VM/src/lgc.cpp",
        "    size_t heapgoalsizebytes = (g->totalbytes / 100) * g->gcgoal;\n\n",
        "    size_t heapgoalsizebytes = heapgoal(g);\n\n",
    ),
    (
        "luau/VM/src/lgc.cpp",
        "    if (g->GCthreshold < g->totalbytes)\n        g->GCthreshold = g->totalbytes;\n",
        "    if (g->GCthreshold < g->totalbytes + kLeastGrowth / 2)\n"
        "        g->GCthreshold = g->totalbytes + kLeastGrowth / 2;\n",
    ),
    # A whole number that a double has exactly. WASI's strtod computes with 128 bits, in software.
    (
        "luau/VM/src/lobject.cpp",
        "    char* endptr;\n    *result = luai_str2num(s, &endptr);\n",
        """    const char* digit = s;
    double whole = 0;
    while (*digit >= '0' && *digit <= '9' && digit - s < 15)
        whole = whole * 10 + (*digit++ - '0');
    if (*digit == '\\0' && digit != s)
    {
        *result = whole;
        return 1;
    }
    char* endptr;
    *result = luai_str2num(s, &endptr);
""",
    ),
]

MLUA_SYS = [
    # How many values one call may pass or return. mlua has Luau compiled with a million: 16 MB of stack, that
    # a script could ask for with one call. These are Luau's own 8,000.
    ("build/find_vendored.rs", ".set_max_cstack_size(1000000)", ".set_max_cstack_size(8000)"),
    ("src/luau/lua.rs", "const LUAI_MAXCSTACK: c_int = 1000000;", "const LUAI_MAXCSTACK: c_int = 8000;"),
    # Compiling throws where there is no memory for it, and may give nothing. The one would leave a pointer
    # that was never written for the collector to free, the other have Luau read bytecode from address 0.
    (
        "src/luau/compat.rs",
        "        let data = luau_compile_(data, size, ptr::null_mut(), &mut size);\n"
        "        ptr::write(data_ud, data);\n",
        "        ptr::write(data_ud, ptr::null_mut());\n"
        "        let data = luau_compile_(data, size, ptr::null_mut(), &mut size);\n"
        "        ptr::write(data_ud, data);\n"
        "        if data.is_null() {\n"
        "            lua_pushstring(L, cstr!(\"not enough memory\"));\n"
        "            lua_replace(L, -2);\n"
        "            return LUA_ERRMEM;\n"
        "        }\n",
    ),
]

CHANGES = {"mlua": MLUA, "mlua-sys": MLUA_SYS, "luau0-src": LUAU}


def main(metadata, folder):
    with open(metadata, encoding="utf-8") as file:
        packages = json.load(file)["packages"]
    for crate, changes in CHANGES.items():
        manifest = next(package["manifest_path"] for package in packages if package["name"] == crate)
        target = os.path.join(folder, crate)
        shutil.copytree(os.path.dirname(manifest), target)
        apply(changes, target)
    split_interpreter(os.path.join(folder, "luau0-src/luau/VM/src/lvmexecute.cpp"))
    join(os.path.join(folder, "luau0-src/luau/VM"))


def join(folder):
    """Has the VM compiled as one, so that small functions of one file are a part of those of others that call them."""
    os.mkdir(os.path.join(folder, "units"))
    names = sorted(name for name in os.listdir(os.path.join(folder, "src")) if name.endswith(".cpp"))
    # Names a function of its own as lstrlib.cpp does.
    alone = "lveclib.cpp"
    for unit, parts in {"vm.cpp": [name for name in names if name != alone], alone: [alone]}.items():
        with open(os.path.join(folder, "units", unit), "w", encoding="utf-8") as file:
            file.writelines(f'#include "../src/{part}"\n' for part in parts)


def split_interpreter(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(interpreter.rewrite(text))


def apply(changes, target):
    for name, old, new in changes:
        path = os.path.join(target, name)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if text.count(old) != 1:
            sys.exit(f"{name}: expected this text once, found it {text.count(old)} times:\n{old}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.replace(old, new))


main(*sys.argv[1:])
