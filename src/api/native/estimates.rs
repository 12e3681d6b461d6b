//! What is charged, and what something would come to that is not there yet.
//!
//! Estimates are computed as bills are: from whole quantities, exactly.

use axum::Json as JsonAnswer;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::billing::{GB, UsageView};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Json;
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{Decimal, MemoryCharged};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::units::MIB;
use crate::domain::usage::Usage;
use crate::domain::usage::cost::{MemoryBasis, Price};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(rates))
        .routes(routes!(estimate))
        .routes(routes!(estimate_volume))
}

/// What is charged, as the configuration has it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rates)]
pub(super) struct RatesView {
    #[schema(example = "EUR")]
    currency: String,
    #[schema(value_type = Decimal)]
    memory_gb_hour: Price,
    #[schema(value_type = Decimal)]
    vcpu_hour: Price,
    #[schema(value_type = Decimal)]
    storage_gb_hour: Price,
    #[schema(value_type = Decimal)]
    egress_gb: Price,
    /// Which memory is charged.
    #[schema(value_type = MemoryCharged)]
    memory: MemoryBasis,
    /// The bytes of a GB.
    #[schema(example = 1_073_741_824)]
    gb_bytes: u64,
}

/// Shows what is charged.
#[utoipa::path(
    get, path = "/billing/rates", tag = "billing",
    responses((status = 200, description = "The configured rates", body = RatesView)),
)]
async fn rates(
    auth: Auth,
    State(state): State<AppState>,
) -> Result<JsonAnswer<RatesView>, ApiError> {
    auth.require_for_list(Permission::ContainersRead)?;
    let rates = state.config.current().billing.rates.clone();
    Ok(JsonAnswer(RatesView {
        currency: rates.currency,
        memory_gb_hour: rates.memory_gb_hour,
        vcpu_hour: rates.vcpu_hour,
        storage_gb_hour: rates.storage_gb_hour,
        egress_gb: rates.egress_gb,
        memory: rates.memory_basis,
        gb_bytes: GB,
    }))
}

/// A month's hours, on average.
const HOURS_DEFAULT: f64 = 730.0;
/// Ten years.
const HOURS_MAX: f64 = 87_600.0;
const BYTES_MAX: u64 = 1 << 50;
const CORES_MAX: f64 = 10_000.0;

/// Something that would run.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = Estimate)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EstimateBody {
    /// Bytes of memory.
    #[schema(maximum = 1_125_899_906_842_624_u64, example = 1_073_741_824)]
    memory: u64,
    /// Cores in use.
    #[schema(minimum = 0, maximum = 10_000, example = 0.5)]
    cpu: f64,
    /// Bytes on the disk.
    #[schema(maximum = 1_125_899_906_842_624_u64, example = 10_737_418_240_u64)]
    storage: u64,
    /// Bytes that leave, in all.
    #[schema(maximum = 1_125_899_906_842_624_u64, example = 1_073_741_824)]
    egress: u64,
    /// How long; a month (730) if left out.
    #[schema(minimum = 0, maximum = 87_600, example = 730.0)]
    hours: Option<f64>,
}

/// What something comes to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Estimated)]
pub(super) struct EstimateView {
    #[schema(example = "EUR")]
    currency: String,
    #[schema(example = 730.0)]
    hours: f64,
    #[serde(flatten)]
    usage: UsageView,
}

impl EstimateView {
    fn new(state: &AppState, hours: f64, usage: &Usage) -> JsonAnswer<Self> {
        let config = state.config.current();
        let rates = &config.billing.rates;
        let currency = rates.currency.clone();
        JsonAnswer(Self { currency, hours, usage: UsageView::new(usage, rates) })
    }
}

/// Says what something would come to that uses so much for so long.
#[utoipa::path(
    post, path = "/billing/estimate", tag = "billing",
    request_body = EstimateBody,
    responses((status = 200, description = "What it comes to", body = EstimateView)),
)]
async fn estimate(
    auth: Auth,
    State(state): State<AppState>,
    Json(body): Json<EstimateBody>,
) -> Result<JsonAnswer<EstimateView>, ApiError> {
    auth.require_for_list(Permission::ContainersRead)?;
    for (name, bytes) in
        [("memory", body.memory), ("storage", body.storage), ("egress", body.egress)]
    {
        if bytes > BYTES_MAX {
            return Err(ApiError::field(name, format!("must be at most {BYTES_MAX} bytes")));
        }
    }
    if !(0.0..=CORES_MAX).contains(&body.cpu) {
        return Err(ApiError::field("cpu", format!("must be between 0 and {CORES_MAX} cores")));
    }
    let (hours, seconds) = time_of(body.hours)?;
    let memory_kib_s = kib_seconds("memory", body.memory, seconds)?;
    let usage = Usage {
        run_ms: seconds * 1000,
        cpu_us: whole(body.cpu * 1000.0) * seconds * 1000,
        memory_kib_s,
        reserved_kib_s: memory_kib_s,
        storage_kib_s: kib_seconds("storage", body.storage, seconds)?,
        egress_bytes: body.egress,
        ingress_bytes: 0,
    };
    Ok(EstimateView::new(&state, hours, &usage))
}

/// A volume, one that there is or one of a size.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = VolumeEstimate, example = json!({"size": 1024, "hours": 730}))]
#[serde(default, deny_unknown_fields)]
pub(super) struct EstimateVolumeBody {
    /// In MB, as for `POST /volumes`.
    #[schema(maximum = 1_073_741_824)]
    size: Option<u64>,
    /// One that there is, with what it holds.
    volume_id: Option<VolumeId>,
    /// How long; a month (730) if left out.
    #[schema(minimum = 0, maximum = 87_600)]
    hours: Option<f64>,
}

refusals!(VolumeRefusals: VOLUME);

/// Says what a volume would come to: one of a size, or one that there is.
#[utoipa::path(
    post, path = "/billing/estimate/volume", tag = "billing",
    request_body = EstimateVolumeBody,
    responses((status = 200, description = "What it comes to", body = EstimateView), VolumeRefusals),
)]
async fn estimate_volume(
    auth: Auth,
    State(state): State<AppState>,
    Json(body): Json<EstimateVolumeBody>,
) -> Result<JsonAnswer<EstimateView>, ApiError> {
    auth.require_for_list(Permission::ContainersRead)?;
    let (hours, seconds) = time_of(body.hours)?;
    let bytes = match (body.size, body.volume_id) {
        (Some(mb), None) if mb <= BYTES_MAX / MIB => mb * MIB,
        (Some(_), None) => {
            let message = format!("must be at most {} MB", BYTES_MAX / MIB);
            return Err(ApiError::field("size", message));
        }
        (None, Some(id)) => {
            super::volumes::reach(&auth, &state, id, Permission::FilesRead).await?;
            let used = state.files.used_bytes(id).await;
            let busy = || ApiError::unavailable("busy", "the volume's content is being counted");
            used.ok_or_else(busy)?.min(BYTES_MAX)
        }
        _ => return Err(ApiError::field("size", "is required, or volume_id instead")),
    };
    let storage_kib_s = kib_seconds("size", bytes, seconds)?;
    let usage = Usage { storage_kib_s, ..Usage::default() };
    Ok(EstimateView::new(&state, hours, &usage))
}

fn kib_seconds(name: &str, bytes: u64, seconds: u64) -> Result<u64, ApiError> {
    let message = || "is too much for so many hours: ask for fewer".to_owned();
    (bytes >> 10).checked_mul(seconds).ok_or_else(|| ApiError::field(name, message()))
}

/// The hours, and as whole seconds.
fn time_of(hours: Option<f64>) -> Result<(f64, u64), ApiError> {
    let hours = hours.unwrap_or(HOURS_DEFAULT);
    if !(0.0..=HOURS_MAX).contains(&hours) {
        return Err(ApiError::field("hours", format!("must be between 0 and {HOURS_MAX}")));
    }
    Ok((hours, whole(hours * 3600.0)))
}

/// The nearest whole number of one that is known to be neither negative nor large.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
fn whole(number: f64) -> u64 {
    number.round() as u64
}
