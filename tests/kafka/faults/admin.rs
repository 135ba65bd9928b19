//! Error codes for the admin client.

use std::collections::BTreeMap;
use std::time::Instant;

use tbd_kafka::admin::{ConfigResource, TopicSpec, all};
use tbd_kafka::{Admin, ApiKey, Error, TopicPartition};

use super::tables::ErrorTable;
use super::{At, Case, Kfake, THREADS, check_all};
use crate::client::{soon, topic};
use crate::support::unique;

/// The names that a case works with.
struct Names {
    topic: String,
    new_topic: String,
    group: String,
}

#[test]
fn every_code_of_every_admin_request_is_retried_or_reported_and_the_next_call_succeeds() {
    let kfake = Kfake::start();
    let apis = [
        ApiKey::Metadata,
        ApiKey::FindCoordinator,
        ApiKey::CreateTopics,
        ApiKey::DeleteTopics,
        ApiKey::CreatePartitions,
        ApiKey::DescribeConfigs,
        ApiKey::IncrementalAlterConfigs,
        ApiKey::ListOffsets,
        ApiKey::DeleteRecords,
        ApiKey::OffsetFetch,
        ApiKey::OffsetCommit,
        ApiKey::OffsetDelete,
        ApiKey::ConsumerGroupDescribe,
        ApiKey::DescribeGroups,
        ApiKey::DeleteGroups,
    ];
    check_all(&apis, THREADS, |case| check(&kfake, case));
}

/// These faults meet any client, so there is one at a time.
#[test]
fn every_code_of_the_requests_that_name_nothing_is_retried_or_reported() {
    let kfake = Kfake::start();
    check_all(&[ApiKey::ApiVersions, ApiKey::ListGroups], 1, |case| {
        check(&kfake, case);
    });
}

fn check(kfake: &Kfake, case: Case) {
    let cluster = kfake.cluster();
    let admin = Admin::new(cluster.clone());
    let names = Names {
        topic: topic(&cluster, 1),
        new_topic: unique("new"),
        group: unique("group"),
    };
    alter_offsets(&admin, &names).unwrap();
    let at = match case.api {
        ApiKey::CreateTopics => At::Topic(&names.new_topic),
        ApiKey::DescribeConfigs | ApiKey::IncrementalAlterConfigs => At::Resource(&names.topic),
        ApiKey::FindCoordinator
        | ApiKey::OffsetFetch
        | ApiKey::OffsetCommit
        | ApiKey::OffsetDelete
        | ApiKey::ConsumerGroupDescribe
        | ApiKey::DescribeGroups
        | ApiKey::DeleteGroups => At::Group(&names.group),
        ApiKey::ListGroups | ApiKey::ApiVersions => At::Any,
        _ => At::Topic(&names.topic),
    };
    let table = ErrorTable::under("### Admin");
    let reaction = case.reaction(&table, column(case.api));
    // So that only the next connection meets a fault of ApiVersions.
    cluster.refresh(&[&names.topic], soon()).unwrap();
    let fault = case.install(kfake, at);
    let started = Instant::now();
    let failed = call(&admin, case, &names).err();
    let code = failed.as_ref().map(Error::code);
    let expected = (reaction == "report").then_some(Some(case.code));
    assert_eq!(code, expected, "{case:?} {reaction} {failed:?}");
    assert!(started.elapsed() < soon().remaining() / 2, "{case:?}");
    assert_eq!(fault.hits(), 1, "{case:?}");
    if failed.is_some() {
        call(&admin, case, &names).unwrap();
    }
}

fn column(api: ApiKey) -> &'static str {
    match api {
        ApiKey::CreateTopics => "CreateTopics",
        ApiKey::DeleteTopics => "DeleteTopics",
        ApiKey::DeleteGroups => "DeleteGroups",
        ApiKey::ConsumerGroupDescribe => "ConsumerGroupDescribe",
        ApiKey::ApiVersions => "ApiVersions",
        ApiKey::FindCoordinator | ApiKey::OffsetCommit | ApiKey::OffsetFetch => "OffsetCommit",
        _ => "any request",
    }
}

/// Makes the request, among others.
fn call(admin: &Admin, case: Case, names: &Names) -> Result<(), Error> {
    let Names {
        topic,
        new_topic,
        group,
    } = names;
    let partition = TopicPartition::new(topic.as_str(), 0);
    let resource = ConfigResource::Topic(topic.clone());
    match case.api {
        ApiKey::Metadata => admin.partition_count(topic, soon()).map(drop),
        ApiKey::CreateTopics => {
            let spec = TopicSpec::new(new_topic.clone(), 1, 1);
            admin.create_topics(&[spec], soon()).and_then(all).map(drop)
        }
        ApiKey::DeleteTopics => admin
            .delete_topics(&[topic], soon())
            .and_then(all)
            .map(drop),
        ApiKey::CreatePartitions => admin.create_partitions(topic, 2, soon()),
        ApiKey::DescribeConfigs => admin.describe_configs(&resource, soon()).map(drop),
        ApiKey::IncrementalAlterConfigs => {
            let changes = [("retention.ms".to_owned(), Some("1000000".to_owned()))];
            admin.alter_configs(&resource, &BTreeMap::from(changes), soon())
        }
        ApiKey::DeleteRecords => {
            let before = BTreeMap::from([(partition, 0)]);
            admin
                .delete_records(&before, soon())
                .and_then(all)
                .map(drop)
        }
        ApiKey::OffsetFetch => {
            let committed = admin.committed_offsets(group, soon());
            committed.and_then(all).map(drop)
        }
        ApiKey::OffsetCommit => alter_offsets(admin, names),
        ApiKey::OffsetDelete => {
            let deleted = admin.delete_group_offsets(group, &[partition], soon());
            deleted.and_then(all).map(drop)
        }
        ApiKey::FindCoordinator | ApiKey::ConsumerGroupDescribe | ApiKey::DescribeGroups => admin
            .describe_groups(&[group], soon())
            .and_then(all)
            .map(drop),
        ApiKey::DeleteGroups => admin
            .delete_groups(&[group], soon())
            .and_then(all)
            .map(drop),
        ApiKey::ListGroups => admin.list_groups(soon()).and_then(all).map(drop),
        ApiKey::ListOffsets | ApiKey::ApiVersions => admin.end_offsets(topic, soon()).map(drop),
        api => panic!("{api:?} is no admin request"),
    }
}

fn alter_offsets(admin: &Admin, names: &Names) -> Result<(), Error> {
    let offsets = BTreeMap::from([(TopicPartition::new(names.topic.as_str(), 0), 0)]);
    let altered = admin.alter_group_offsets(&names.group, &offsets, soon());
    altered.and_then(all).map(drop)
}
