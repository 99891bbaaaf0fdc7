//! What routing has done, in numbers: per rule and per target.
