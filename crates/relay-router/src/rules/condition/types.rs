//! The types that the checker distinguishes.

use std::fmt;

/// A type of CEL, as far as it is known before evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ty {
    /// The type of no value, such as an element of an empty list.
    Never,
    /// A type that is known only at evaluation.
    Dyn,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Null,
    Timestamp,
    Duration,
    Type,
    List(Box<Ty>),
    Map(Box<Ty>, Box<Ty>),
}

impl Ty {
    pub(super) fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    /// Returns true if the type is unknown before evaluation.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Dyn | Self::Never)
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Returns true if a value of this type can stand for one of `other`.
    pub(super) fn fits(&self, other: &Self) -> bool {
        match (self, other) {
            _ if self.is_open() || other.is_open() => true,
            (Self::List(one), Self::List(other)) => one.fits(other),
            (Self::Map(key, value), Self::Map(other_key, other_value)) => {
                key.fits(other_key) && value.fits(other_value)
            }
            _ => self == other,
        }
    }

    /// Returns true if values of both types can be equal. Numbers of different kinds can.
    pub(super) fn is_comparable_to(&self, other: &Self) -> bool {
        self.fits(other) || self.is_number() && other.is_number()
    }

    /// Returns the common type of two alternatives.
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Never, ty) | (ty, Self::Never) => ty,
            (Self::List(one), Self::List(other)) => Self::list(one.or(*other)),
            (Self::Map(key, value), Self::Map(other_key, other_value)) => {
                Self::Map(Box::new(key.or(*other_key)), Box::new(value.or(*other_value)))
            }
            (one, other) if one == other => one,
            _ => Self::Dyn,
        }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never | Self::Dyn => "dyn",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::Null => "null",
            Self::Timestamp => "timestamp",
            Self::Duration => "duration",
            Self::Type => "type",
            Self::List(of) => return write!(f, "list({of})"),
            Self::Map(key, value) => return write!(f, "map({key}, {value})"),
        })
    }
}
