//! Counters and latency windows of Relay's crates.
//!
#![doc = include_str!("../README.md")]

mod counter;
mod latency;
mod merge;

pub use counter::{Counter, CounterMap, Metric};
pub use latency::{LatencyStats, LatencyWindow};
pub use merge::Merge;

/// Declares a set of counters and the snapshot that is read from it, so that no counter can be forgotten in one of the two.
///
/// The first struct holds the live [`Metric`]s. The second is their snapshot: it begins with gauges, whose present values
/// are handed to `snapshot` in their order, and has the value of each counter. It is `#[non_exhaustive]`, serialises, and
/// [merges](Merge) with others of its kind. The crate's example shows the form. The calling crate needs `serde`.
#[macro_export]
macro_rules! counters {
    (
        $(#[$live_meta:meta])*
        $live_vis:vis struct $Live:ident;

        $(#[$stats_meta:meta])*
        $stats_vis:vis struct $Stats:ident {
            gauges: { $( $(#[$gauge_doc:meta])* $gauge:ident: $Gauge:ty, )* }
            counters: { $( $(#[$doc:meta])* $name:ident: $Metric:ty, )* }
        }
    ) => {
        $(#[$live_meta])*
        #[derive(Debug, Default)]
        $live_vis struct $Live {
            $( $(#[$doc])* $live_vis $name: $Metric, )*
        }

        $(#[$stats_meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, ::serde::Serialize)]
        #[non_exhaustive]
        $stats_vis struct $Stats {
            $( $(#[$gauge_doc])* pub $gauge: $Gauge, )*
            $( $(#[$doc])* pub $name: <$Metric as $crate::Metric>::Value, )*
        }

        impl $Live {
            /// Reads every counter, one after the other, beside the given gauges.
            $live_vis fn snapshot(&self $(, $gauge: $Gauge)*) -> $Stats {
                $Stats {
                    $( $gauge, )*
                    $( $name: $crate::Metric::read(&self.$name), )*
                }
            }
        }

        impl $crate::Merge for $Stats {
            fn merge(&mut self, other: Self) {
                $( $crate::Merge::merge(&mut self.$gauge, other.$gauge); )*
                $( $crate::Merge::merge(&mut self.$name, other.$name); )*
            }
        }
    };
}
