# A few obvious targets; everything here is also a plain go command.

.PHONY: build test race vet demo ci clean

build:
	go build -o bin/ ./cmd/...

test:
	go test ./...

race:
	go test -race ./attest/... ./policy/... ./kds/... ./raftstore/... ./enclave/...

vet:
	go vet ./...
	go vet -tags ego ./...

demo:
	go run ./cmd/claviger demo

ci:
	bash .ci/run

clean:
	rm -rf bin
