"""Splits Luau's interpreter, so that its state stays in registers.

Cranelift gives each variable of a function one place for long stretches of it, and knows nothing of which parts
run often. Luau's interpreter is one loop with many calls in it, and what must survive a call lay on the stack: each
instruction wrote the program counter to two places there and read it again. After the split there are

- `luau_execute_fast`, a loop that runs what needs no call, and keeps nothing but the state's address across
  the few calls in it. What it cannot finish it begins again with
- `luau_execute_call`, which runs one instruction and says where the next one is, if it is one of the few that do no
  more than to call a function in C or to make or fill a table, and hands all others to
- `luau_execute_one`, the interpreter as it was, which runs one instruction. To enter it costs more than those few.

So each case of the fast loop must leave everything as it was, or such that doing it again changes nothing,
up to the point where it gives up. `rewrite` stops the build where Luau's text is not what it was written for.
`tests/interpreter` runs both: native Luau, which has the interpreter as it was, says what the guest must say.
"""

import hashlib
import re
import sys

HEAD = "template<bool SingleStep>\nstatic void luau_execute(lua_State* L)\n"
TAIL = "void luau_execute(lua_State* L)\n{\n    if (L->singlestep)\n"
FAST_CALL = "        luau_execute<false>(L);\n"
# Where a case writes above the stack's top, and then moves it, for a call.
PUSH = "// note: it's safe to push arguments past top for complicated reasons (see top of the file)\n"
# SHA-256 of the text whose cases were read one by one, for what each has changed when it gives up.
READ = "6ba935b06b5044738befe9b5f62a5c1822d81525b45636f8863f7fc55c9c0022"

# What does its usual work without a call.
FAST = """
NOP LOADNIL LOADB LOADN LOADK LOADKX MOVE GETGLOBAL SETGLOBAL GETUPVAL SETUPVAL GETIMPORT GETTABLEKS SETTABLEKS
GETTABLE SETTABLE GETTABLEN SETTABLEN NAMECALL CALL RETURN JUMP JUMPX JUMPBACK JUMPIF JUMPIFNOT JUMPIFEQ JUMPIFNOTEQ
JUMPIFLE JUMPIFNOTLE JUMPIFLT JUMPIFNOTLT JUMPXEQKNIL JUMPXEQKB JUMPXEQKN JUMPXEQKS CMPPROTO NOT AND OR ANDK ORK
SETLIST FORNPREP FORNLOOP FORGLOOP FORGPREP_INEXT FORGPREP_NEXT
""".split()
# Arithmetic; vectors and userdata go the other way.
ARITHMETIC = "ADD SUB MUL DIV IDIV MOD ADDK SUBK MULK DIVK IDIVK MODK SUBRK DIVRK MINUS".split()
# Calls of builtins.
BUILTIN = "FASTCALL1 FASTCALL2 FASTCALL2K".split()
# What needs a call of its own and nothing else.
CALL = "CALL NEWTABLE DUPTABLE SETLIST".split()

BEFORE = r"""
#define SingleStep false
#undef VM_NEXT
#define VM_NEXT() return pc
#undef VM_HAS_NATIVE
#define VM_HAS_NATIVE 0
"""

BETWEEN = r"""
#undef VM_NEXT
#define VM_NEXT() goto dispatch
#undef VM_UV
#define VM_UV(i) (&luau_closure->l.uprefs[i])
#undef VM_PROTECT
#define VM_PROTECT(x) goto slow;
#undef VM_PROTECT_PC
#define VM_PROTECT_PC() goto slow
#undef VM_INTERRUPT
// The host sets it from another thread, and a loop without a call must see it.
#define VM_INTERRUPT() \
    { \
        if (LUAU_UNLIKELY(!!*static_cast<void (*volatile*)(lua_State*, int)>(&L->global->cb.interrupt))) \
            goto slow; \
    }
#undef VM_CHECK_GC
#define VM_CHECK_GC(x) { if (luaC_needsGC(L)) goto slow; }
#pragma push_macro("luaC_barrier")
#pragma push_macro("luaC_barriert")
#pragma push_macro("luaC_barrierfast")
#pragma push_macro("incr_ci")
#pragma push_macro("luaD_checkstackfornewci")
#pragma push_macro("ttisobject")
#undef luaC_barrier
#define luaC_barrier(L, p, v) { if (iscollectable(v) && isblack(obj2gco(p)) && iswhite(gcvalue(v))) goto slow; }
#undef luaC_barriert
#define luaC_barriert(L, t, v) luaC_barrier(L, t, v)
#undef luaC_barrierfast
#define luaC_barrierfast(L, t) { if (isblack(obj2gco(t))) goto slow; }
#undef incr_ci
#define incr_ci(L) (++(L)->ci)
#undef luaD_checkstackfornewci
#define luaD_checkstackfornewci(L, n)
#undef ttisobject
#define ttisobject(o) false
#define luau_closure (clvalue(L->ci->func))
#define luau_never(o) false
#define luau_nostack(L, top, n) ((char*)(L)->stack_last - (char*)(top) <= (n) * (int)sizeof(TValue))
#define luaH_getstr(h, key) ({ goto slow; (const TValue*)0; })
#define luaT_gettm(t, e, n) ({ goto slow; (const TValue*)0; })
#define luaT_gettmbyobj(L, o, e) ({ goto slow; (const TValue*)0; })
#define luaV_strcmp(a, b) ({ goto slow; 0; })

static void luau_execute_fast(lua_State* L)
{
    const Instruction* pc = L->ci->savedpc;
    // Where the instruction begins, for `luau_execute_one`.
    const Instruction* start;
    StkId base = L->base;
    TValue* k = L->ci->p->k;

    for (;;)
    {
    dispatch:
        start = pc;
        switch (LUAU_INSN_OP(*pc))
        {
"""

AFTER = """
        default:
            goto slow;
        }
    slow:
        pc = luau_execute_call(L, start);
        if (!pc)
            return;
        base = L->base;
        k = L->ci->p->k;
    }

exit:;
}

#undef luau_closure
#undef luau_never
#undef luau_nostack
#undef luaH_getstr
#undef luaT_gettm
#undef luaT_gettmbyobj
#undef luaV_strcmp
#pragma pop_macro("luaC_barrier")
#pragma pop_macro("luaC_barriert")
#pragma pop_macro("luaC_barrierfast")
#pragma pop_macro("incr_ci")
#pragma pop_macro("luaD_checkstackfornewci")
#pragma pop_macro("ttisobject")
#undef SingleStep

"""


def rewrite(text):
    """The text of lvmexecute.cpp, split. Native builds, and a debugger's single steps, run what stood there."""
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != READ:
        sys.exit(f"lvmexecute.cpp: not the text that was read: read each case of the fast loop, then set READ to {found}")
    start, end = text.index(HEAD), text.index("\n" + TAIL) + 1
    loop = text[start:end]
    bodies = dict(re.findall(r"^            VM_CASE\(LOP_(\w+)\)\n            \{\n(.*?)^            \}\n", loop, re.M | re.S))
    if len(bodies) != loop.count("VM_CASE(LOP_"):
        sys.exit("lvmexecute.cpp: not every case of the interpreter was found")
    # In Luau's order: NAMECALL goes on with CALL, which follows it.
    cases = "".join(
        f"            case LOP_{name}:\n            {{\n{change(name, body)}            }}\n"
        for name, body in bodies.items()
        if name in FAST + ARITHMETIC + BUILTIN
    )
    split = "#ifdef __wasm__\n" + BEFORE + one(loop) + call(bodies) + BETWEEN + cases + AFTER + "#endif\n\n"
    enter = f"#ifdef __wasm__\n        luau_execute_fast(L);\n#else\n{FAST_CALL}#endif\n"
    return text[:end] + split + replace(text[end:], FAST_CALL, enter)


def one(loop):
    """The whole interpreter as a function that runs one instruction; null says that the thread ends or waits."""
    head = "static LUAU_NOINLINE const Instruction* luau_execute_one(lua_State* L, const Instruction* pc)\n"
    loop = replace(loop, HEAD, head)
    loop = replace(loop, "    const Instruction* pc;\n", "")
    loop = replace(loop, "    pc = L->ci->savedpc;\n", "")
    loop = replace(loop, '    VM_NEXT(); // starts the interpreter "loop"\n', "    goto dispatch;\n")
    return replace(leave(loop), "exit:;\n}", "exit:\n    return nullptr;\n}")


def leave(text):
    """Where the interpreter ends, the function says so."""
    return re.sub(r"\breturn;", "return nullptr;", text)


def call(bodies):
    """The few instructions that need little, as they were."""
    cases = "".join(f"    case LOP_{name}:\n            {{\n{leave(bodies[name])}            }}\n" for name in CALL)
    return f"""
static LUAU_NOINLINE const Instruction* luau_execute_call(lua_State* L, const Instruction* pc)
{{
    Closure* cl = clvalue(L->ci->func);
    StkId base = L->base;
    TValue* k = L->ci->p->k;
    switch (LUAU_INSN_OP(*pc))
    {{
{cases}
    default:
        return luau_execute_one(L, pc);
    }}
exit:
    return nullptr;
}}
"""


def change(name, body):
    """A case for the fast loop."""
    # Nobody may see the stack's top moved by an instruction that begins again: not the handler of an interrupt that the
    # host has set meanwhile, and not the collector.
    body = body.replace(PUSH, "goto slow;\n")
    if name == "SETLIST":
        body = replace(body, "                    c = int(L->top - rb);\n", "                    goto slow;\n")
    if "L->top =" in body.partition("goto slow;\n")[0] and name not in ["CALL", "RETURN", *BUILTIN]:
        sys.exit(f"lvmexecute.cpp: {name} moves the stack's top")
    body = body.replace("case LUA_TUSERDATA:", "case LUA_TUSERDATA: goto slow;")
    body = body.replace(" cl = ccl;", "").replace(" cl = nextcl;", "")
    if name in ARITHMETIC:
        body = body.replace("ttisvector(", "luau_never(").replace("ttisuserdata(", "luau_never(")
    if name in ("GETTABLEKS", "SETTABLEKS"):
        comment = "                // fast-path: built-in table\n"
        body = replace(body, comment, "                if (LUAU_UNLIKELY(!ttistable(rb))) goto slow;\n" + comment)
    if name == "CALL":
        closure = "                Closure* ccl = clvalue(ra);\n"
        needs_call = "ccl->isC || L->ci == L->end_ci || luau_nostack(L, argtop, ccl->stacksize)"
        body = replace(body, closure, f"{closure}                if ({needs_call}) goto slow;\n")
        body = replace(body, "if (!ccl->isC)", "if (true)")
    if name == "NAMECALL":
        # The object may be gone from its register, so it is CALL that begins again.
        body += "                start = pc;\n                [[fallthrough]];\n"
    if name in BUILTIN:
        body = call_builtin(body)
    body = branch(body)
    return re.sub(r"\bcl\b", "luau_closure", body)


def branch(body):
    """Makes a choice of the next instruction a branch.

    As a value it would have the processor wait for what is compared before it knows where the program goes on; a branch
    it guesses. Said to be likely, the compiler leaves it a branch.
    """
    body = re.sub(r"pc \+= (.+) \? (.+) : (.+);", r"if (LUAU_LIKELY(\1)) pc += \2; else pc += \3;", body)
    return body.replace("if (step > 0 ? idx <= limit : limit <= idx)\n", "if (LUAU_LIKELY(step > 0 ? idx <= limit : limit <= idx))\n")


def call_builtin(body):
    """Calls the builtin, then reads everything again: a variable that is kept across the call slows the whole loop."""
    length, skip = (2, "LUAU_INSN_C(insn) - 1") if "uint32_t aux" in body else (1, "LUAU_INSN_C(insn)")
    if f"int skip = {skip};" not in body:
        sys.exit("lvmexecute.cpp: a call of a builtin is not encoded as it was")
    body = replace(body, "VM_PROTECT_PC();", "L->ci->savedpc = pc;")
    call = re.search(r" *int n = f\([^;]*;\n", body).group()
    again = f"""
                    pc = L->ci->savedpc;
                    base = L->base;
                    k = L->ci->p->k;
                    insn = pc[-{length}];
                    skip = {skip};
                    call = pc[skip];
                    ra = VM_REG(LUAU_INSN_A(call));
                    nresults = LUAU_INSN_C(call) - 1;
"""
    return replace(body, call, call + again)


def replace(text, old, new):
    """Replaces what must stand there exactly once."""
    if text.count(old) != 1:
        sys.exit(f"lvmexecute.cpp: expected this text once, found it {text.count(old)} times:\n{old}")
    return text.replace(old, new)
