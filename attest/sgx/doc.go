// Package sgx reads and writes Intel SGX ECDSA quotes of version 3, and of version 5 with SGX reports, and the report
// bodies inside them.
//
// It is a codec and nothing more: every value it returns is unverified. ParseQuote accepts exactly the bytes that
// Quote.Append writes, so a parsed quote has one encoding; anything shorter, longer or with a length field that
// disagrees with its surroundings is refused. Only attest turns a quote into claims.
//
// Sources: Intel SGX ECDSA QuoteLibReference DCAP API, appendix A.4 "Quote Format" (version 3); Intel TDX DCAP
// Quoting Library API, appendix A.4 "Version 5 Quote Format" (body type 1); Intel SDM volume 3D, section "REPORT" for the 384-byte report body. All integers are little endian.
package sgx
