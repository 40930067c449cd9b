//! What a device is held to, in husk's own terms: as it is told, and as it may be asked for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{LimiterConfig, Limits, Rate};

/// What a disk or a network is held to, and with it all of its group. What is absent has no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceLimits {
    /// Both ways together.
    total: FlowLimits,
    /// What is read, or received.
    to_guest: FlowLimits,
    /// What is written, or transmitted.
    from_guest: FlowLimits,
}

/// Null where there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct FlowLimits {
    bytes: Option<BucketLimits>,
    /// Requests, or frames.
    operations: Option<BucketLimits>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BucketLimits {
    #[schemars(range(min = 1))]
    size: u64,
    /// Tokens beside it, once.
    #[serde(default)]
    burst: u64,
    /// The time in which it fills.
    #[schemars(range(min = 1))]
    refill_ms: u64,
}

/// A bucket that limits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{flow}.{bucket}: size {size} in {refill_ms} ms is no limit: use 1 and more, or leave it out")]
pub struct BucketError {
    flow: &'static str,
    bucket: &'static str,
    size: u64,
    refill_ms: u64,
}

impl From<LimiterConfig> for DeviceLimits {
    fn from(limits: LimiterConfig) -> Self {
        let LimiterConfig { total, inward, outward } = limits;
        Self { total: total.into(), to_guest: inward.into(), from_guest: outward.into() }
    }
}

impl TryFrom<DeviceLimits> for LimiterConfig {
    type Error = BucketError;

    fn try_from(limits: DeviceLimits) -> Result<Self, BucketError> {
        let DeviceLimits { total, to_guest, from_guest } = limits;
        Ok(Self {
            total: total.check("total")?,
            inward: to_guest.check("to_guest")?,
            outward: from_guest.check("from_guest")?,
        })
    }
}

impl FlowLimits {
    fn check(self, flow: &'static str) -> Result<Limits, BucketError> {
        let check = |limits: Option<BucketLimits>, bucket| {
            let Some(BucketLimits { size, burst, refill_ms }) = limits else { return Ok(None) };
            let refused = BucketError { flow, bucket, size, refill_ms };
            Rate::new(size, burst, refill_ms).ok_or(refused).map(Some)
        };
        Ok(Limits { bytes: check(self.bytes, "bytes")?, operations: check(self.operations, "operations")? })
    }
}

impl From<Limits> for FlowLimits {
    fn from(limits: Limits) -> Self {
        let Limits { bytes, operations } = limits;
        Self { bytes: bytes.map(BucketLimits::from), operations: operations.map(BucketLimits::from) }
    }
}

impl From<Rate> for BucketLimits {
    fn from(rate: Rate) -> Self {
        Self { size: rate.size(), burst: rate.burst(), refill_ms: rate.refill_ms() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_may_be_asked_for() {
        let rate = |size| Rate::new(size, 7, 250);
        let limits = |size| Limits { bytes: rate(size), operations: rate(size + 1) };
        for config in [
            LimiterConfig::default(),
            LimiterConfig { total: limits(1), inward: limits(3), outward: limits(5) },
            LimiterConfig { outward: Limits { bytes: rate(9), operations: None }, ..LimiterConfig::default() },
        ] {
            let text = serde_json::to_string(&DeviceLimits::from(config)).unwrap();
            let asked: DeviceLimits = serde_json::from_str(&text).unwrap();
            assert_eq!(LimiterConfig::try_from(asked), Ok(config), "{text}");
        }
    }

    #[test]
    fn a_bucket_of_nothing_is_refused_by_its_place() {
        for (size, refill_ms) in [(0, 5), (5, 0)] {
            let text = format!(r#"{{"to_guest": {{"operations": {{"size": {size}, "refill_ms": {refill_ms}}}}}}}"#);
            let asked: DeviceLimits = serde_json::from_str(&text).unwrap();
            let refused = LimiterConfig::try_from(asked).unwrap_err().to_string();
            assert!(refused.starts_with("to_guest.operations: "), "{refused}");
        }
    }
}
