//! The shape of a payload, checked in one pass over its JSON text.
//!
//! The pass counts levels and checks types together, and builds no value. It allocates only where a text contains an
//! escape, for which the JSON reader needs a buffer. A shape is at most as tolerant as the payload type that it stands
//! for: a match proves that the type can be read. After a mismatch the type itself decides, and explains the mistake.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The shape that a JSON value must have.
pub(super) enum Shape {
    /// Any value, `null` included.
    Any,
    /// Any value but `null`.
    NotNull,
    Text,
    /// A whole number from 0 to `u64::MAX`.
    Unsigned,
    /// One of these texts.
    Word(&'static [&'static str]),
    /// A value of this shape, or `null` instead of an absent one.
    Optional(&'static Shape),
    /// An array whose items all have this shape.
    List(&'static Shape),
    /// An array with exactly these items.
    Tuple(&'static [Shape]),
    Object {
        /// The known members. Others may have any value.
        members: &'static [(&'static str, Shape)],
        /// Sets of members, at least one of which must be complete.
        required: &'static [&'static [&'static str]],
    },
}

impl Shape {
    /// Returns true when `json` is one value of this shape with at most `max_levels` of arrays and objects in one another.
    pub(super) fn matches(&self, json: &[u8], max_levels: usize) -> bool {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let check = Check { shape: self, levels: max_levels };
        check.deserialize(&mut deserializer).and_then(|_| deserializer.end()).is_ok()
    }
}

/// The check of one value. Its result is false for a `null` instead of an absent value.
struct Check<'s> {
    shape: &'s Shape,
    /// The levels of arrays and objects that may still open.
    levels: usize,
}

impl<'s> Check<'s> {
    /// Returns the shape of a value that is present.
    fn present(&self) -> &'s Shape {
        match self.shape {
            Shape::Optional(shape) => shape,
            shape => shape,
        }
    }

    /// Enters an array or object: returns the levels that may open in it.
    fn enter<E: Error>(&self) -> Result<usize, E> {
        self.levels.checked_sub(1).ok_or_else(mismatch)
    }
}

/// Returns the error of a mismatch, which is never shown.
fn mismatch<E: Error>() -> E {
    E::custom("mismatch")
}

/// Returns the result for a value that is present.
fn accept_if<E: Error>(fits: bool) -> Result<bool, E> {
    if fits { Ok(true) } else { Err(mismatch()) }
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value of the kind's shape")
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        match self.shape {
            Shape::Any => Ok(true),
            Shape::Optional(_) => Ok(false),
            _ => Err(mismatch()),
        }
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<bool, E> {
        accept_if(matches!(self.present(), Shape::Any | Shape::NotNull))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<bool, E> {
        accept_if(matches!(self.present(), Shape::Any | Shape::NotNull | Shape::Unsigned))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<bool, E> {
        accept_if(matches!(self.present(), Shape::Any | Shape::NotNull))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<bool, E> {
        accept_if(matches!(self.present(), Shape::Any | Shape::NotNull))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        accept_if(match self.present() {
            Shape::Any | Shape::NotNull | Shape::Text => true,
            Shape::Word(words) => words.contains(&text),
            _ => false,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        let levels = self.enter()?;
        let item = match self.present() {
            Shape::Any | Shape::NotNull => &Shape::Any,
            Shape::List(item) => item,
            Shape::Tuple(shapes) => {
                // The JSON reader refuses an array with items left over.
                for shape in *shapes {
                    items.next_element_seed(Check { shape, levels })?.ok_or_else(mismatch)?;
                }
                return Ok(true);
            }
            _ => return Err(mismatch()),
        };
        while items.next_element_seed(Check { shape: item, levels })?.is_some() {}
        Ok(true)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<bool, A::Error> {
        let levels = self.enter()?;
        let (members, required) = match self.present() {
            Shape::Any | Shape::NotNull => (&[][..], &[&[][..]][..]),
            Shape::Object { members, required } => (*members, *required),
            _ => return Err(mismatch()),
        };
        let (mut seen, mut present) = (0_u32, 0_u32);
        while let Some(index) = entries.next_key_seed(MemberIndex(members))? {
            let shape = index.map_or(&Shape::Any, |index| &members[index].1);
            let is_present = entries.next_value_seed(Check { shape, levels })?;
            if let Some(index) = index {
                let bit = 1 << index;
                if seen & bit != 0 {
                    return Err(mismatch());
                }
                seen |= bit;
                present |= if is_present { bit } else { 0 };
            }
        }
        let is_given = |name: &&str| {
            members.iter().position(|(member, _)| member == name).is_some_and(|at| present & (1 << at) != 0)
        };
        accept_if(required.iter().any(|set| set.iter().all(is_given)))
    }
}

/// The search of a member's name among the known ones; `None` for an unknown member.
struct MemberIndex(&'static [(&'static str, Shape)]);

impl<'de> DeserializeSeed<'de> for MemberIndex {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for MemberIndex {
    type Value = Option<usize>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a member's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|(member, _)| *member == name))
    }
}
