// A Kafka cluster in memory, franz-go's kfake, that answers chosen requests with an error code.
//
// It prints the addresses of its brokers, separated by commas, and then obeys lines on standard input:
//
//	fault KEY CODE COUNT TOPIC GROUP ID RESOURCE SCOPE
//	                the next COUNT requests of this kind fail with CODE; prints the fault's number
//	watch KEY GROUP counts the group's requests of this kind; prints the count's number
//	hits NUMBER     prints how many requests the fault has answered, or the watch has seen
//	remove NUMBER   ends the fault or the watch; prints its number
//
// A dash for TOPIC, GROUP, ID (the transactional one) or RESOURCE means any. SCOPE is a dash, "top" for the error code of the
// whole answer, or "leave" for heartbeats with which a member leaves. It ends with its input. The argument "old" makes it a Kafka
// without transaction.version 2; "login" makes it ask for a login by SCRAM-SHA-256 as admin, with the password admin.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

func main() {
	options := []kfake.Opt{kfake.NumBrokers(3), kfake.BrokerConfigs(map[string]string{
		"group.consumer.heartbeat.interval.ms": "100",
		"group.consumer.session.timeout.ms":    "6000",
	})}
	switch strings.Join(os.Args[1:], " ") {
	case "":
	case "old":
		options = append(options, kfake.MaxVersions(kversion.V3_9_0()))
	case "login":
		options = append(options, kfake.EnableSASL())
	default:
		log.Fatalf("unknown arguments %q", os.Args[1:])
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	fmt.Println(strings.Join(cluster.ListenAddrs(), ","))

	var faults []*kfake.FaultHandle
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.Fields(input.Text())
		switch {
		case len(words) == 9 && words[0] == "fault":
			fault := kfake.Fault{
				Keys:     []kmsg.Key{kmsg.Key(number(words[1]))},
				Err:      kfakeError(int16(number(words[2]))),
				Count:    number(words[3]),
				Topic:    name(words[4]),
				Group:    name(words[5]),
				TxnID:    name(words[6]),
				Resource: name(words[7]),
				TopLevel: words[8] == "top",
			}
			if words[8] == "leave" {
				fault.When = leaves
			}
			faults = append(faults, cluster.Fault(fault))
			fmt.Println(len(faults) - 1)
		case len(words) == 3 && words[0] == "watch":
			faults = append(faults, cluster.Fault(kfake.Fault{
				Keys:    []kmsg.Key{kmsg.Key(number(words[1]))},
				Group:   name(words[2]),
				Count:   -1,
				Observe: true,
			}))
			fmt.Println(len(faults) - 1)
		case len(words) == 2 && words[0] == "remove":
			faults[number(words[1])].Remove()
			fmt.Println(words[1])
		case len(words) == 2 && words[0] == "hits":
			fmt.Println(faults[number(words[1])].Hits())
		default:
			log.Fatalf("unknown order %q", input.Text())
		}
	}
}

// The error with this code. kfake knows by the error's identity which ones it answers after it has done the work.
func kfakeError(code int16) *kerr.Error {
	var known *kerr.Error
	if errors.As(kerr.ErrorForCode(code), &known) && known.Code == code {
		return known
	}
	return &kerr.Error{Message: "INJECTED", Code: code}
}

// Whether a member of the consumer protocol leaves with this heartbeat.
func leaves(request kmsg.Request) bool {
	heartbeat, ok := request.(*kmsg.ConsumerGroupHeartbeatRequest)
	return ok && heartbeat.MemberEpoch < 0
}

func number(word string) int {
	number, err := strconv.Atoi(word)
	if err != nil {
		log.Fatal(err)
	}
	return number
}

func name(word string) string {
	if word == "-" {
		return ""
	}
	return word
}
