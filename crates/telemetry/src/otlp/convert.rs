//! Conversion of the Prometheus registry's metrics to OTLP's messages.
//!
//! Names and labels stay. Units stay empty: a unit would make the collector's Prometheus exporter change names.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus::proto::{self, MetricFamily, MetricType};

use crate::tracing::SCOPE;

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// The request with `families`, counted from `start` until now.
pub(super) fn export_request(
    families: &[MetricFamily],
    resource: &Resource,
    start: SystemTime,
) -> ExportMetricsServiceRequest {
    let times = Times {
        start: nanos(start),
        now: nanos(SystemTime::now()),
    };
    let metrics = families.iter().filter_map(|family| times.metric(family));
    let scope = InstrumentationScope {
        name: SCOPE.to_owned(),
        ..Default::default()
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource.clone()),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope),
                metrics: metrics.collect(),
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The span of time that the numbers cover.
struct Times {
    start: u64,
    now: u64,
}

impl Times {
    /// `None` for a type that [`Registry`](crate::metrics::Registry) does not create.
    fn metric(&self, family: &MetricFamily) -> Option<Metric> {
        let metrics = family.get_metric();
        let data = match family.get_field_type() {
            MetricType::COUNTER => Data::Sum(Sum {
                data_points: self.numbers(metrics, |metric| metric.get_counter().get_value()),
                aggregation_temporality: CUMULATIVE,
                is_monotonic: true,
            }),
            MetricType::GAUGE => Data::Gauge(Gauge {
                data_points: self.numbers(metrics, |metric| metric.get_gauge().get_value()),
            }),
            MetricType::HISTOGRAM => Data::Histogram(Histogram {
                data_points: metrics
                    .iter()
                    .map(|metric| self.histogram(metric))
                    .collect(),
                aggregation_temporality: CUMULATIVE,
            }),
            _ => return None,
        };
        Some(Metric {
            name: family.name().to_owned(),
            description: family.help().to_owned(),
            data: Some(data),
            ..Default::default()
        })
    }

    fn numbers(
        &self,
        metrics: &[proto::Metric],
        value: impl Fn(&proto::Metric) -> f64,
    ) -> Vec<NumberDataPoint> {
        let point = |metric: &proto::Metric| NumberDataPoint {
            attributes: attributes(metric),
            start_time_unix_nano: self.start,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsDouble(value(metric))),
            ..Default::default()
        };
        metrics.iter().map(point).collect()
    }

    fn histogram(&self, metric: &proto::Metric) -> HistogramDataPoint {
        let histogram = metric.get_histogram();
        // Prometheus counts up to a bound, OTLP between two bounds. The last bucket, up to infinity, has no bound here.
        let mut below = 0;
        let buckets = histogram.get_bucket();
        let up_to = buckets.iter().map(proto::Bucket::cumulative_count);
        let bucket_counts = up_to.chain([histogram.get_sample_count()]).map(|count| {
            let between = count.saturating_sub(below);
            below = count;
            between
        });
        HistogramDataPoint {
            attributes: attributes(metric),
            start_time_unix_nano: self.start,
            time_unix_nano: self.now,
            count: histogram.get_sample_count(),
            sum: Some(histogram.get_sample_sum()),
            bucket_counts: bucket_counts.collect(),
            explicit_bounds: buckets.iter().map(proto::Bucket::upper_bound).collect(),
            ..Default::default()
        }
    }
}

fn attributes(metric: &proto::Metric) -> Vec<KeyValue> {
    let text = |value: &str| AnyValue {
        value: Some(any_value::Value::StringValue(value.to_owned())),
    };
    let attribute = |label: &proto::LabelPair| KeyValue {
        key: label.name().to_owned(),
        value: Some(text(label.value())),
        ..Default::default()
    };
    metric.get_label().iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    fn exported(registry: &Registry, name: &str) -> Data {
        let request = export_request(&registry.gather(), &Resource::default(), UNIX_EPOCH);
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let metric = metrics.iter().find(|metric| metric.name == name).unwrap();
        metric.data.clone().unwrap()
    }

    #[test]
    fn counters_and_gauges_keep_value_labels_and_kind() {
        let registry = Registry::new();
        let seen = registry.counters("seen_total", "Seen.", &["kind"]);
        seen.with_label_values(&["new"]).inc_by(3);
        registry.gauge("level", "Level.").set(-1.5);

        let Data::Sum(sum) = exported(&registry, "seen_total") else {
            panic!("a sum");
        };
        assert!(sum.is_monotonic && sum.aggregation_temporality == CUMULATIVE);
        let point = &sum.data_points[0];
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(3.0)));
        assert_eq!(point.attributes[0].key, "kind");
        assert!(point.start_time_unix_nano < point.time_unix_nano);
        let Data::Gauge(gauge) = exported(&registry, "level") else {
            panic!("a gauge");
        };
        let value = gauge.data_points[0].value;
        assert_eq!(value, Some(number_data_point::Value::AsDouble(-1.5)));
    }

    #[test]
    fn a_histograms_buckets_count_between_their_bounds() {
        let registry = Registry::new();
        let times = registry.histogram("time_seconds", "Time.", &[1.0, 2.0]);
        for time in [0.5, 1.5, 1.6, 9.0] {
            times.observe(time);
        }
        let Data::Histogram(histogram) = exported(&registry, "time_seconds") else {
            panic!("a histogram");
        };
        let point = &histogram.data_points[0];
        assert_eq!(point.explicit_bounds, [1.0, 2.0]);
        assert_eq!(point.bucket_counts, [1, 2, 1]);
        assert_eq!((point.count, point.sum), (4, Some(12.6)));
    }
}
