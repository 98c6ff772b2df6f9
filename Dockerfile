# One image per program, where ko cannot be had:
#
#   docker build --build-arg PROGRAM=edge --build-arg VERSION=v1.2.3 -t registry.example.com/relay/edge:v1.2.3 .
#
# PROGRAM is edge, fanout, auth or feedsim. The program is the entry point, and
# on the PATH by its name.
ARG GO_IMAGE=golang:1.26
ARG BASE_IMAGE=gcr.io/distroless/static-debian13:nonroot@sha256:e2e927ec666bae08560abb3c55d0659eceabb657f56b6782ab500a9fc7f555e3

FROM ${GO_IMAGE} AS build
ARG PROGRAM
ARG VERSION=devel
ENV CGO_ENABLED=0
WORKDIR /src
COPY . .
RUN package=$(find services hack -type d -path "*/cmd/${PROGRAM:?: build-arg PROGRAM is edge, fanout, auth or feedsim}") \
 && go build -trimpath -ldflags "-s -w -X github.com/cutemarkets/relay/services/internal/version.release=${VERSION}" \
      -o "/image/usr/local/bin/${PROGRAM}" "./${package:?: there is no program ${PROGRAM}}" \
 && ln -s "usr/local/bin/${PROGRAM}" /image/entrypoint

FROM ${BASE_IMAGE}
COPY --from=build /image/ /
USER 65532:65532
ENTRYPOINT ["/entrypoint"]
