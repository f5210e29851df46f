//! The metatable of vectors that vector.luau and its like expect.

use std::os::raw::c_float;

use mlua::ffi::{lua_pushnumber, lua_pushvector, luaL_checkvector};
use mlua::{Error, IntoLua, Lua, Table, Vector};

use super::native::{function, natives};

/// Gives vectors `Magnitude`, `Unit`, `Dot` and `Cross`.
pub fn members(lua: &Lua, _globals: &Table) -> mlua::Result<()> {
    // Without names, which is how the files expect their messages.
    let (dot, cross) = (function(lua, None, dot, None)?, function(lua, None, cross, None)?);
    let index = lua.create_function(move |lua, (vector, name): (Vector, String)| {
        let magnitude = (vector.x().powi(2) + vector.y().powi(2) + vector.z().powi(2)).sqrt();
        match name.as_str() {
            "Magnitude" => magnitude.into_lua(lua),
            "Unit" => {
                let scale = 1.0 / magnitude;
                Vector::new(vector.x() * scale, vector.y() * scale, vector.z() * scale).into_lua(lua)
            }
            "Dot" => dot.clone().into_lua(lua),
            "Cross" => cross.clone().into_lua(lua),
            _ => Err(Error::runtime(format!("{name} is not a valid member of vector"))),
        }
    })?;
    let metatable = lua.create_table()?;
    metatable.raw_set("__index", index)?;
    metatable.set_readonly(true);
    lua.set_type_metatable::<Vector>(Some(metatable));
    Ok(())
}

unsafe fn components(vector: *const c_float) -> [c_float; 3] {
    // SAFETY: `luaL_checkvector` gave a vector, which has three components.
    unsafe { *vector.cast() }
}

natives! {
    fn dot(state) {
        let (a, b) = (components(luaL_checkvector(state, 1)), components(luaL_checkvector(state, 2)));
        lua_pushnumber(state, f64::from(a[0] * b[0] + a[1] * b[1] + a[2] * b[2]));
        1
    }
    fn cross(state) {
        let (a, b) = (components(luaL_checkvector(state, 1)), components(luaL_checkvector(state, 2)));
        lua_pushvector(
            state,
            a[1] * b[2] - a[2] * b[1],
            a[2] * b[0] - a[0] * b[2],
            a[0] * b[1] - a[1] * b[0],
        );
        1
    }
}
