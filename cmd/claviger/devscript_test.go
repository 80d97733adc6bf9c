package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/claviger/claviger/kds/node/nodetest"
)

// awaitLimit bounds how long a script waits for a process in the background.
const awaitLimit = 30 * time.Second

// poll repeats try until it succeeds.
func poll(ts *testscript.TestScript, try func() error) {
	err := try()
	for limit := time.Now().Add(awaitLimit); err != nil && time.Now().Before(limit); err = try() {
		time.Sleep(20 * time.Millisecond)
	}
	ts.Check(err)
}

// freePort NAME sets a variable to a port that nobody else takes while the tests run.
func freePort(ts *testscript.TestScript, _ bool, args []string) {
	port, mark, err := nodetest.Port()
	ts.Check(err)
	ts.Defer(func() { mark.Close() })
	ts.Setenv(args[0], strconv.Itoa(port))
}

// awaitFile FILE waits until the file is there.
func awaitFile(ts *testscript.TestScript, _ bool, args []string) {
	poll(ts, func() error {
		_, err := os.Stat(ts.MkAbs(args[0]))
		return err
	})
}

// awaitPort PORT waits until something listens.
func awaitPort(ts *testscript.TestScript, _ bool, args []string) {
	poll(ts, func() error {
		conn, err := net.Dial("tcp", "127.0.0.1:"+args[0])
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// derived is what the commands below read of a key's JSON.
type derived struct{ Key, Constraint string }

func readDerived(ts *testscript.TestScript, name string) derived {
	var d derived
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(name)), &d))
	if d.Key == "" || d.Constraint == "" {
		ts.Fatalf("%s holds no key", name)
	}
	return d
}

// sameKey A B compares the keys of two outputs of key derive.
func sameKey(ts *testscript.TestScript, neg bool, args []string) {
	if a, b := readDerived(ts, args[0]), readDerived(ts, args[1]); (a.Key == b.Key) == neg {
		ts.Fatalf("keys are equal: %t", a.Key == b.Key)
	}
}

// constraintOf FILE NAME sets a variable to the constraint that a key is bound to.
func constraintOf(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[1], readDerived(ts, args[0]).Constraint)
}

// ageMatch RECIPIENT IDENTITY encrypts to one and decrypts with the other, as two people would.
func ageMatch(ts *testscript.TestScript, _ bool, args []string) {
	recipient, err := age.ParseX25519Recipient(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	identity, err := age.ParseX25519Identity(readDerived(ts, args[1]).Key)
	ts.Check(err)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	ts.Check(err)
	_, err = io.WriteString(w, "for code only")
	ts.Check(err)
	ts.Check(w.Close())
	r, err := age.Decrypt(&sealed, identity)
	ts.Check(err)
	plain, err := io.ReadAll(r)
	ts.Check(err)
	if string(plain) != "for code only" {
		ts.Check(fmt.Errorf("decrypted to %q", plain))
	}
}
