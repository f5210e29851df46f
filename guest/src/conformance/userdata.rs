//! Userdata that userdata.luau, udata_direct.luau and native_userdata.luau expect.

use mlua::{
    FromLua, Function, Lua, MetaMethod, Table, UserData, UserDataFields, UserDataMethods, UserDataRef, Value, Vector,
};

/// For userdata.luau: `int64`, a whole number with all operators.
pub fn whole_numbers(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    globals.raw_set("int64", lua.create_function(|_, number: f64| Ok(Int64(number as i64)))?)
}

struct Int64(i64);

/// A binary operator, and what it computes.
type Operator<T, R = T> = (MetaMethod, fn(T, T) -> R);

/// An operand: an `int64`, or a number in its place.
struct Operand(i64);

impl FromLua for Operand {
    fn from_lua(value: Value, lua: &Lua) -> mlua::Result<Self> {
        match value {
            Value::UserData(userdata) => Ok(Self(userdata.borrow::<Int64>()?.0)),
            other => Ok(Self(f64::from_lua(other, lua)? as i64)),
        }
    }
}

impl UserData for Int64 {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("value", |_, this| Ok(this.0 as f64));
        fields.add_field_method_set("value", |_, this, value: f64| {
            this.0 = value as i64;
            Ok(())
        });
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        let arithmetic: [Operator<i64>; 7] = [
            (MetaMethod::Add, |a, b| a + b),
            (MetaMethod::Sub, |a, b| a - b),
            (MetaMethod::Mul, |a, b| a * b),
            // The file wants these two to round in different directions.
            (MetaMethod::Div, |a, b| a / b),
            (MetaMethod::IDiv, |a, b| (a as f64 / b as f64).floor() as i64),
            (MetaMethod::Mod, |a, b| a % b),
            (MetaMethod::Pow, |a, b| (a as f64).powf(b as f64) as i64),
        ];
        for (operator, compute) in arithmetic {
            methods.add_meta_function(operator, move |_, (a, b): (Operand, Operand)| Ok(Int64(compute(a.0, b.0))));
        }
        let comparisons: [Operator<i64, bool>; 3] =
            [(MetaMethod::Eq, |a, b| a == b), (MetaMethod::Lt, |a, b| a < b), (MetaMethod::Le, |a, b| a <= b)];
        for (operator, compare) in comparisons {
            methods.add_meta_function(operator, move |_, (a, b): (Operand, Operand)| Ok(compare(a.0, b.0)));
        }
        methods.add_meta_method(MetaMethod::Unm, |_, this, _: Value| Ok(Int64(-this.0)));
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(this.0.to_string()));
    }
}

/// For udata_direct.luau and native_userdata.luau: `vec2`, a point, and `vertex`, which has one.
pub fn points(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let vec2 = lua.create_function(|_, (x, y)| Ok(Vec2 { x, y }))?;
    globals.raw_set("vec2", vec2)?;
    let vertex = lua.create_function(|_, (position, normal, uv): (Vector, Vector, UserDataRef<Vec2>)| {
        Ok(Vertex { position, normal, uv: *uv })
    })?;
    globals.raw_set("vertex", vertex)
}

#[derive(Clone, Copy)]
struct Vec2 {
    x: f32,
    y: f32,
}

impl Vec2 {
    fn magnitude(&self) -> f32 {
        (self.x * self.x + self.y * self.y).sqrt()
    }
}

impl UserData for Vec2 {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field("sizeof", size_of::<Self>());
        fields.add_field_method_get("X", |_, this| Ok(this.x));
        fields.add_field_method_get("Y", |_, this| Ok(this.y));
        fields.add_field_method_set("X", |_, this, x| {
            this.x = x;
            Ok(())
        });
        fields.add_field_method_set("Y", |_, this, y| {
            this.y = y;
            Ok(())
        });
        fields.add_field_method_get("Magnitude", |_, this| Ok(this.magnitude()));
        fields.add_field_method_get("Unit", |_, this| {
            Ok(Self { x: this.x / this.magnitude(), y: this.y / this.magnitude() })
        });
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("Dot", |_, this, other: UserDataRef<Self>| Ok(this.x * other.x + this.y * other.y));
        methods.add_method("Min", |_, this, other: UserDataRef<Self>| {
            Ok(Self { x: this.x.min(other.x), y: this.y.min(other.y) })
        });
        methods.add_method("Clone", |_, this, ()| Ok(*this));
        methods.add_method("Reenter", |lua, this, ()| {
            if let Some(callback) = lua.globals().get::<Option<Function>>("reenterCallback")? {
                callback.call::<()>(())?;
            }
            Ok(this.x + this.y)
        });
        let arithmetic: [Operator<f32>; 4] = [
            (MetaMethod::Add, |a, b| a + b),
            (MetaMethod::Sub, |a, b| a - b),
            (MetaMethod::Mul, |a, b| a * b),
            (MetaMethod::Div, |a, b| a / b),
        ];
        for (operator, compute) in arithmetic {
            methods.add_meta_method(operator, move |_, this, other: UserDataRef<Self>| {
                Ok(Self { x: compute(this.x, other.x), y: compute(this.y, other.y) })
            });
        }
        methods.add_meta_method(MetaMethod::Unm, |_, this, _: Value| Ok(Self { x: -this.x, y: -this.y }));
    }
}

#[derive(Clone, Copy)]
struct Vertex {
    position: Vector,
    normal: Vector,
    uv: Vec2,
}

impl UserData for Vertex {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field("sizeof", size_of::<Self>());
        fields.add_field_method_get("pos", |_, this| Ok(this.position));
        fields.add_field_method_get("normal", |_, this| Ok(this.normal));
        fields.add_field_method_get("uv", |_, this| Ok(this.uv));
        fields.add_field_method_set("pos", |_, this, position| {
            this.position = position;
            Ok(())
        });
        fields.add_field_method_set("normal", |_, this, normal| {
            this.normal = normal;
            Ok(())
        });
        fields.add_field_method_set("uv", |_, this, uv: UserDataRef<Vec2>| {
            this.uv = *uv;
            Ok(())
        });
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("Clone", |_, this, ()| Ok(*this));
    }
}
